// Package crash kills, starves and corrupts trainings of the built program, and
// compares what they come to with a training that was left in peace. It has no
// code of its own: everything is in the tests.
package crash
