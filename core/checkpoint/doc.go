// Package checkpoint saves the state of a training so that no crash, full disk or
// bad sector costs more than the steps since the last save. It moves bytes; what
// they mean is for the trainer.
//
// # Layout
//
//	DIR/step-00001234/MANIFEST                names, sizes and SHA-256 of the others
//	DIR/step-00001234/weights.safetensors     F32 [rows, cols]
//	DIR/step-00001234/optimizer.safetensors   F32 [rows, cols]
//	DIR/step-00001234/state.json              cursors, counters, random numbers
//	DIR/step-00001234/KEEP                    empty; if there, rotation passes by
//	DIR/LATEST                                the name of the newest, for people
//
// A second save of a step is step-00001234.1, and so on. A name that ends in .tmp
// is a save, or a removal, that has not ended; the next save removes it.
//
// # Protocol
//
// The files are written to DIR/step-00001234.tmp and synced, MANIFEST last, then
// that directory; it is renamed, which is the moment at which the checkpoint
// exists, and DIR synced; LATEST is replaced; then old ones go: renamed to .tmp
// first, so that half a removed one is never taken for a checkpoint. Nothing is
// removed before the new one was read back whole. An error of a sync ends the
// save: what the disk holds is unknown then.
//
// Readers trust MANIFEST alone, which ends in a SHA-256 of itself, and take the
// newest checkpoint that verifies. Newest is by the number of the save, not by the
// step: a training that went back to an earlier step continues from there.
package checkpoint
