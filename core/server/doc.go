// Package server speaks HTTP as OpenAI's programs do, over models of core/chat.
//
// It translates and protects: requests become chat.Requests, pieces become JSON
// or server-sent events, and nothing that a client sends can make the process
// fail, wait for ever or take memory without limit. What is computed, and in
// which batch, is decided in core/infer.
//
// A Server is an http.Handler and can also serve a listener with the timeouts
// and the orderly end that a public address needs.
package server
