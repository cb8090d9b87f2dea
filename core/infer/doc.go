// Package infer turns token ids into more token ids.
//
// It owns the key-value cache, the batch scheduler and cancellation. It knows
// nothing about text: tokenization and chat templates live in core/chat.
//
// An Engine serves any number of requests at once with one scheduler
// goroutine. A Session keeps what it has computed from one request to the
// next. A Stream gives a request's tokens one at a time to one goroutine.
//
// The tokens of a request depend on (weights, prompt, sampling options, seed)
// only: never on the requests beside it, the number of threads, what is cached,
// how a prompt is cut into steps, or whether tokens are guessed ahead.
package infer
