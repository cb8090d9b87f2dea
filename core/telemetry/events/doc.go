// Package events writes TensorBoard's event files: scalars, histograms and texts of a
// run, by step.
//
// A file is a row of records as TensorFlow's TFRecord frames them, each an Event message
// of TensorBoard's event.proto; the few fields in use are encoded here, so that the
// package needs nothing. See https://github.com/tensorflow/tensorboard, event.proto,
// summary.proto and tensor.proto under tensorboard/compat/proto.
package events
