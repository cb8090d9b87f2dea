package tokenizer_test

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/core/tokenizer"
)

func ExampleTrain() {
	text := "fn a() {\n    let x = 1;\n}\nfn b() {\n    let y = 2;\n}\n"
	docs := func(yield func(string, error) bool) { yield(text, nil) }
	tok, err := tokenizer.Train(context.Background(), docs, tokenizer.TrainOptions{VocabSize: tokenizer.MinVocab + 9}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, id := range tok.Encode(nil, "fn c() {\n    let z = 12;", tokenizer.EncodeOptions{AddBOS: true}) {
		fmt.Printf("%q ", tok.Piece(id))
	}
	// Output: "<|endoftext|>" "fn" " " "c" "()" " {" "\n    " "let" " " "z" " =" " " "1" "2" ";"
}

func ExampleStreamDecoder() {
	tok, err := tokenizer.NewByteLevel(1000)
	if err != nil {
		fmt.Println(err)
		return
	}
	d := tok.NewStreamDecoder(tokenizer.DecodeOptions{})
	for _, id := range tok.Encode(nil, "né", tokenizer.EncodeOptions{}) { // é has two bytes
		fmt.Printf("%q ", d.Next(nil, id))
	}
	// Output: "n" "" "é"
}
