package chat

// UnsupportedError says that this model cannot do what was asked, such as filling gaps
// without the tokens for it.
type UnsupportedError struct {
	// What says what was asked and what the model lacks.
	What string
	// Hint says what to do instead.
	Hint string
}

func (e *UnsupportedError) Error() string { return "chat: " + e.What + "; " + e.Hint }
