// Package watch shows a training to other programs: it is a train.Observer that feeds
// the log, the metrics and the spans of core/telemetry.
//
// core/train itself links none of these, so that the shared library does not either.
package watch
