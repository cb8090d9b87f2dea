package telemetry

import (
	"crypto/rand"
	"encoding/hex"
)

// NewRunID returns 12 random hexadecimal digits.
func NewRunID() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
