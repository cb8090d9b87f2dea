//go:build race

package telemetry

import "time"

// scrapeLimit is how long a scrape may take under the race detector.
const scrapeLimit = 50 * time.Millisecond
