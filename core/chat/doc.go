// Package chat is the engine with text on both sides: a prompt becomes ids, and
// ids become pieces of text.
//
// It opens model files, joins the tokenizer with the engine, turns conversations and
// gaps into prompts, finds stop texts and never gives out half a character. What ids
// follow from ids is decided in core/infer.
//
// A Model is for any number of goroutines; a Stream is for one. A Session is a text that
// grows, with what was computed for it kept.
package chat
