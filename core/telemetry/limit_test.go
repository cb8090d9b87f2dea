//go:build !race

package telemetry

import "time"

// scrapeLimit is how long a scrape may take.
const scrapeLimit = 5 * time.Millisecond
