// Package load puts a load on a server that speaks OpenAI's HTTP and measures what its
// clients feel: the time to the first token, the gaps between tokens, the time to the end,
// and what fails how.
//
// In an open loop requests arrive at random times (a Poisson process of a given rate),
// whatever became of those before, and every latency counts from the time at which the
// request was due: a server that stalls is charged for all who would have come meanwhile.
// In a closed loop a fixed number of clients send one request after the other.
package load
