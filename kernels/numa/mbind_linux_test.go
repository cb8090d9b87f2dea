package numa

// mbindError is what a node out of range gives.
func mbindError() error { return mbind(make([]byte, 4096), mpolPreferred, []int{maxCPU}) }
