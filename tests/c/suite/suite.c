/* suite PART MODEL [ARGUMENT...]: runs one part of the tests. It prints nothing unless
 * something is wrong, generate excepted. */
#include "check.h"

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int, char **);
	} parts[] = {
		{"generate", generate}, {"contract", contract},     {"misuse", misuse},
		{"chaos", chaos},       {"concurrent", concurrent}, {"forks", forks},
		{"signals", signals},   {"cycles", cycles},         {"sessions", sessions},
		{"jobs", jobs},         {"table", table},
	};

	for (size_t i = 0; argc >= 3 && i < sizeof parts / sizeof *parts; i++)
		if (!strcmp(argv[1], parts[i].name))
			return parts[i].run(argc - 2, argv + 2);
	fprintf(stderr, "usage: %s PART MODEL [ARGUMENT...]\n", argv[0]);
	return 2;
}
