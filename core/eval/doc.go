// Package eval measures how well a model predicts text.
//
// The measure is bits per byte, which does not depend on the vocabulary:
//
//	bits per byte = Σ -ln p(target) / (ln 2 · bytes of text)
//
// over all targets. The targets are those of training (package data): every token
// of text once, and the end of every document once, which stands for no bytes but
// costs bits like any other token. The probability of a target is the softmax of the
// logits that the engine gives for the tokens before it, the same to the last bit
// that generation has. Rows of logits are reduced in float32 (kernels.Set.LogSumExp),
// sums over targets are float64 and in the order of the text, so that the result
// depends on the model and the text only: not on threads or the size of steps.
//
// # Documents
//
// A document is its tokens behind BOS and before the token that ends a text (the
// same token in our own vocabularies). It is cut into windows of Window inputs that
// the model sees each for itself, at positions from 0; the targets are the tokens
// that follow the inputs. With Overlap, every window but the first begins with as
// many inputs of the window before it, whose targets count only there: less of the
// text is predicted from a short context, at the price of more work. Without it the
// windows are cut as training cuts rows, but at the document's own begin.
// Every byte of text is counted once. Where the vocabulary has no BOS, nothing
// stands before the first token of a document, and neither its bits nor its bytes
// count.
//
// # Prepared data
//
// Dataset evaluates a split of prepared data exactly as training does: the stream of
// all documents, as stored, cut into rows wherever a row ends; each document within
// a row is a sequence of its own, at positions from 0.
package eval
