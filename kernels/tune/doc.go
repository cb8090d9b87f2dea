// Package tune measures which kernel set is fastest for each shape a model uses,
// on the machine it runs on, and remembers the answer in a file.
//
// It knows shapes, not models: the caller lists what it will compute and gets
// back one *kernels.Set that runs every shape on its fastest set. All sets give
// the same bits, so tuning changes no result, only the time.
package tune
