package chat

import "strings"

// The formats. Each ends where the assistant's answer begins, or inside its last message
// if that is to be continued: then nothing is put behind it.

// continued reports whether message i is the assistant's and the last.
func continued(messages []Message, i int) bool {
	return i == len(messages)-1 && messages[i].Role == RoleAssistant
}

// trimmed is the content of message i without space around it; a message that is continued
// keeps what is behind it.
func trimmed(messages []Message, i int) string {
	if continued(messages, i) {
		return strings.TrimLeft(messages[i].Content, " \t\r\n\v\f")
	}
	return strings.TrimSpace(messages[i].Content)
}

// writePlain writes one text: an answer goes on where the message before it ends, as it did
// when it was made; other messages begin a line.
func writePlain(w *writer, messages []Message) {
	for i, m := range messages {
		if i > 0 && m.Role != RoleAssistant && !strings.HasSuffix(messages[i-1].Content, "\n") {
			w.put("\n")
		}
		w.put(m.Content)
	}
}

// writeBitNet writes "User: Hi<|eot_id|>Assistant: " (microsoft/bitnet-b1.58-2B-4T).
func writeBitNet(w *writer, messages []Message) {
	names := map[string]string{RoleSystem: "System: ", RoleUser: "User: ", RoleAssistant: "Assistant: "}
	for i, m := range messages {
		w.put(names[m.Role], trimmed(messages, i))
		if continued(messages, i) {
			return
		}
		w.token("<|eot_id|>")
	}
	w.put(names[RoleAssistant])
}

// writeChatML writes "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n".
func writeChatML(w *writer, messages []Message) {
	for i, m := range messages {
		w.token("<|im_start|>")
		w.put(m.Role, "\n", m.Content)
		if continued(messages, i) {
			return
		}
		w.token("<|im_end|>")
		w.put("\n")
	}
	w.token("<|im_start|>")
	w.put(RoleAssistant, "\n")
}

// writeGemma writes "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n";
// a system message stands before the first user message, with an empty line between.
func writeGemma(w *writer, messages []Message) {
	system := ""
	for i, m := range messages {
		if m.Role == RoleSystem {
			system = m.Content + "\n\n"
			continue
		}
		w.token("<start_of_turn>")
		if m.Role == RoleAssistant {
			w.put("model\n")
		} else {
			w.put("user\n")
		}
		w.put(system, trimmed(messages, i))
		system = ""
		if continued(messages, i) {
			return
		}
		w.token("<end_of_turn>")
		w.put("\n")
	}
	w.token("<start_of_turn>")
	w.put("model\n")
}

// writeLlama2 writes "<s>[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] ...".
func writeLlama2(w *writer, messages []Message) {
	system := ""
	begun := false
	for i, m := range messages {
		switch m.Role {
		case RoleSystem:
			system = "<<SYS>>\n" + m.Content + "\n<</SYS>>\n\n"
		case RoleUser:
			if begun { // the first is there already
				w.id(w.bosID)
			}
			begun = true
			w.put("[INST] ", strings.TrimSpace(system+m.Content), " [/INST]")
			system = ""
		default:
			w.put(" ", trimmed(messages, i))
			if continued(messages, i) {
				return
			}
			w.put(" ")
			w.id(w.eosID)
		}
	}
}

// writeLlama3 writes "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>...".
func writeLlama3(w *writer, messages []Message) {
	header := func(role string) {
		w.token("<|start_header_id|>")
		w.put(role)
		w.token("<|end_header_id|>")
		w.put("\n\n")
	}
	for i, m := range messages {
		header(m.Role)
		w.put(trimmed(messages, i))
		if continued(messages, i) {
			return
		}
		w.token("<|eot_id|>")
	}
	header(RoleAssistant)
}

// writeNanochat writes "<|user|>Hi<|end|><|assistant|>", as core/tokenizer defines it.
func writeNanochat(w *writer, messages []Message) {
	for i, m := range messages {
		w.token("<|" + m.Role + "|>")
		w.put(m.Content)
		if continued(messages, i) {
			return
		}
		w.token("<|end|>")
	}
	w.token("<|assistant|>")
}

// writePhi3 writes "<|user|>\nHi<|end|>\n<|assistant|>\n".
func writePhi3(w *writer, messages []Message) {
	for i, m := range messages {
		w.token("<|" + m.Role + "|>")
		w.put("\n", m.Content)
		if continued(messages, i) {
			return
		}
		w.token("<|end|>")
		w.put("\n")
	}
	w.token("<|assistant|>")
	w.put("\n")
}

// writeZephyr writes "<|user|>\nHi</s>\n<|assistant|>\n", where only </s> is a token.
func writeZephyr(w *writer, messages []Message) {
	for i, m := range messages {
		w.put("<|", m.Role, "|>\n", m.Content)
		if continued(messages, i) {
			return
		}
		w.id(w.eosID)
		w.put("\n")
	}
	w.put("<|assistant|>\n")
}
