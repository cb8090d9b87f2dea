// Package team runs one function on several cores at once and lets the copies
// meet at barriers.
//
// It knows threads only: no kernel, no model. A Team keeps its workers between
// calls; they spin for a short while after each call, so that the next one
// starts within a fraction of a microsecond, and then sleep, so that an idle
// program uses no CPU. Nothing is allocated by Run, Barrier, Range or Next.
//
// What the function computes must not depend on which worker computes it; then
// results do not depend on the number of workers.
package team
