// Package telemetry makes what a training or a server does visible to other
// programs: JSON log lines, Prometheus metrics, OpenTelemetry spans.
//
// It observes and never takes part. Nothing in it blocks its caller, fails its
// caller or panics: what cannot be written or sent is dropped and counted. The zero
// of every handle, a nil pointer, is valid and does nothing, so that callers need
// no conditions.
//
// What it knows of other packages it gets as numbers: it imports none of them, and
// the shared library, which has no use for it, does not link it. TensorBoard's files,
// which need no dependency, are in core/telemetry/events.
package telemetry
