module github.com/architehc/nanochat/tests/server/testdata/goopenai

go 1.26.0

require github.com/sashabaranov/go-openai v1.43.0
