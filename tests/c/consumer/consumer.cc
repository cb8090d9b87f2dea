// consumer MODEL PROMPT in C++: prints the continuation. A handle is closed by its deleter.
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include <nanochat.h>

namespace
{

struct closer {
	void operator()(nanochat_model *m) const { nanochat_model_close(m); }
	void operator()(nanochat_stream *s) const { nanochat_stream_close(s); }
};

// err is a reference: it is looked at after the call.
void check(nanochat_status status, nanochat_error *&err)
{
	if (status == NANOCHAT_OK)
		return;
	const std::string message = nanochat_error_message(err);
	nanochat_error_free(err);
	throw std::runtime_error(message);
}

} // namespace

int main(int argc, char **argv)
try {
	if (argc != 3)
		return 2;
	const std::string prompt = argv[2];
	nanochat_error *err = nullptr;
	nanochat_model *m = nullptr;
	check(nanochat_model_open(argv[1], nullptr, &m, &err), err);
	const std::unique_ptr<nanochat_model, closer> model(m);
	nanochat_stream *s = nullptr;
	check(nanochat_stream_open(m, prompt.data(), prompt.size(), nullptr, &s, &err), err);
	const std::unique_ptr<nanochat_stream, closer> stream(s);
	nanochat_piece piece;
	nanochat_piece_init(&piece, sizeof piece);
	char text[4096];
	do {
		check(nanochat_stream_next(s, NANOCHAT_FOREVER, text, sizeof text, &piece, &err), err);
		std::cout.write(text, static_cast<std::streamsize>(piece.length));
	} while (!piece.finish);
	return 0;
} catch (const std::exception &e) {
	std::cerr << e.what() << '\n';
	return 1;
}
