// Package browser drives the chat page in a real browser: headless Chromium by the
// WebDriver protocol. It has no code of its own.
package browser
