/* jobs MODEL DIR: settings, the zoo, and jobs. DIR has index.json with the models small
 * (bundled), later (planned) and far (published), small/small.gguf, and train.toml, a training of
 * some seconds. */
#include "check.h"

static char path[4096];

static const char *in(const char *dir, const char *name)
{
	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

/* last reads a job to its end and closes it; the last record stays in text. It returns the status
 * of the last call. */
static nanochat_status last(nanochat_job *job, char *text, size_t capacity, int32_t *finish,
                            long *records)
{
	nanochat_status status;
	size_t n;

	*records = 0;
	*text = 0;
	do {
		status = nanochat_job_next(job, 100, text, capacity - 1, &n, finish, NULL);
		if (status == NANOCHAT_E_TIMEOUT)
			continue;
		text[n] = 0;
		if (!status)
			CHECK(n > 2 && text[0] == '{' && text[n - 1] == '}' && strstr(text, "\"type\":\""));
		*records += !status;
	} while (status == NANOCHAT_E_TIMEOUT || (!status && !*finish));
	if (!status) {
		IS(NANOCHAT_OK, nanochat_job_next(job, 0, NULL, 0, &n, finish, NULL));
		CHECK(n == 0 && *finish);
	}
	IS(NANOCHAT_OK, nanochat_job_close(job));
	IS(NANOCHAT_E_CLOSED, nanochat_job_close(job));
	return status;
}

static void settings(const char *dir)
{
	char value[4096];
	nanochat_error *err = NULL;
	size_t n;

	setenv("NANOCHAT_CACHE", "/from/env", 1);
	IS(NANOCHAT_OK, nanochat_get("cache", value, sizeof value, &n, NULL));
	CHECK(n == 9 && !memcmp(value, "/from/env", 9));
	IS(NANOCHAT_OK, nanochat_set("cache", in(dir, "cache"), NULL));
	IS(NANOCHAT_OK, nanochat_get("cache", value, sizeof value, &n, NULL));
	CHECK(n == strlen(path) && !memcmp(value, path, n));
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_get("cache", value, 1, &n, NULL));
	CHECK(n == strlen(path));
	unsetenv("NANOCHAT_CACHE");
	IS(NANOCHAT_E_INVALID, nanochat_set("colour", "red", &err));
	CHECK(strstr(nanochat_error_message(err), "colour"));
	CHECK(strstr(nanochat_error_hint(err), "threads"));
	nanochat_error_free(err);
	IS(NANOCHAT_E_INVALID, nanochat_set("threads", "0", NULL));
	IS(NANOCHAT_E_INVALID, nanochat_set(NULL, "0", NULL));
	IS(NANOCHAT_E_INVALID, nanochat_get(NULL, value, 9, &n, NULL));
	IS(NANOCHAT_OK, nanochat_set("threads", "1", NULL));
	IS(NANOCHAT_OK, nanochat_set("memory_limit", "1000000000", NULL));
	IS(NANOCHAT_OK, nanochat_set("gc_percent", "60", NULL));
	IS(NANOCHAT_OK, nanochat_get("gc_percent", value, sizeof value, &n, NULL));
	CHECK(n == 2 && !memcmp(value, "60", 2));
	IS(NANOCHAT_OK, nanochat_set("gc_percent", NULL, NULL));
	IS(NANOCHAT_OK, nanochat_set("memory_limit", NULL, NULL));
	IS(NANOCHAT_OK, nanochat_set("token", "secret", NULL));
	IS(NANOCHAT_OK, nanochat_get("token", value, sizeof value, &n, NULL));
	CHECK(n == 3 && !memcmp(value, "set", 3));
	IS(NANOCHAT_OK, nanochat_set("token", NULL, NULL));
	IS(NANOCHAT_OK, nanochat_set("index", in(dir, "index.json"), NULL));
	IS(NANOCHAT_OK, nanochat_set("models", dir, NULL));
	IS(NANOCHAT_OK, nanochat_set("offline", "1", NULL));
}

static void zoo(void)
{
	nanochat_zoo_options o;
	nanochat_model *model;
	nanochat_error *err = NULL;
	char text[8192];
	uint64_t freed = 7;
	size_t n;

	IS(NANOCHAT_OK, nanochat_zoo_list(NULL, text, sizeof text - 1, &n, NULL));
	text[n] = 0;
	CHECK(strstr(text, "\"state\":\"bundled\"") && strstr(text, "\"state\":\"planned\""));
	CHECK(strstr(text, "\"state\":\"available\""));
	IS(NANOCHAT_OK, nanochat_zoo_resolve("small", NULL, text, sizeof text - 1, &n, NULL));
	text[n] = 0;
	CHECK(strstr(text, "small.gguf\"") && strstr(text, "\"source\":\"bundled\""));
	IS(NANOCHAT_OK, nanochat_model_open("small", NULL, &model, NULL));
	IS(NANOCHAT_OK, nanochat_model_info(model, text, sizeof text - 1, &n, NULL));
	text[n] = 0;
	CHECK(strstr(text, "\"source\":\"bundled\"") && strstr(text, "\"bits_per_weight\":"));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	IS(NANOCHAT_E_PLANNED, nanochat_model_open("later", NULL, &model, NULL));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("far", NULL, &model, &err));
	CHECK(strstr(nanochat_error_hint(err), "nanochat_download_open"));
	nanochat_error_free(err);
	IS(NANOCHAT_E_NOT_FOUND, nanochat_zoo_resolve("smal", NULL, text, 1, &n, &err));
	CHECK(n == 0 && strstr(nanochat_error_hint(err), "small"));
	nanochat_error_free(err);
	IS(NANOCHAT_E_INVALID, nanochat_zoo_resolve("no name!", NULL, text, 1, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_zoo_resolve(NULL, NULL, text, 1, &n, NULL));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_zoo_remove("small", NULL, &freed, NULL));
	CHECK(freed == 0);
	nanochat_zoo_options_init(&o, sizeof o);
	o.flags = 4;
	IS(NANOCHAT_E_INVALID, nanochat_zoo_list(&o, text, sizeof text, &n, NULL));
	nanochat_zoo_options_init(&o, sizeof o);
	o.struct_size = 4;
	IS(NANOCHAT_E_INVALID, nanochat_zoo_list(&o, text, sizeof text, &n, NULL));
}

static void downloads(const char *model)
{
	nanochat_zoo_options o;
	nanochat_job *job;
	char text[4096];
	int32_t finish;
	long records;

	IS(NANOCHAT_OK, nanochat_download_open("small", NULL, &job, NULL));
	IS(NANOCHAT_OK, last(job, text, sizeof text, &finish, &records));
	CHECK(finish == NANOCHAT_FINISH_STOP && strstr(text, "\"source\":\"bundled\""));
	IS(NANOCHAT_OK, nanochat_download_open("far", NULL, &job, NULL));
	IS(NANOCHAT_E_OFFLINE, last(job, text, sizeof text, &finish, &records));
	IS(NANOCHAT_OK, nanochat_download_open("later", NULL, &job, NULL));
	IS(NANOCHAT_E_PLANNED, last(job, text, sizeof text, &finish, &records));
	nanochat_zoo_options_init(&o, sizeof o);
	o.url = "https://host.example/x.gguf";
	IS(NANOCHAT_E_INVALID, nanochat_download_open("own", &o, &job, NULL));
	CHECK(!job);
	IS(NANOCHAT_E_INVALID, nanochat_download_open(NULL, NULL, &job, NULL));
	IS(NANOCHAT_OK, nanochat_verify_open(model, NULL, &job, NULL));
	IS(NANOCHAT_OK, last(job, text, sizeof text, &finish, &records));
	CHECK(strstr(text, "\"verified\":\"tensors\""));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_verify_open("/none.gguf", NULL, &job, NULL));
}

static nanochat_job *train(const char *config, const char *out, const char *steps,
                           const char *resume)
{
	char a[4096], b[64];
	const char *sets[2];
	nanochat_job *job;
	nanochat_error *err;

	snprintf(a, sizeof a, "train.out='%s'", out);
	snprintf(b, sizeof b, "train.steps=%s", steps);
	sets[0] = a;
	sets[1] = b;
	if (nanochat_train_open(config, sets, 2, resume, &job, &err)) {
		fprintf(stderr, "train: %s\n", nanochat_error_message(err));
		_exit(1);
	}
	return job;
}

static void trainings(const char *dir)
{
	char config[4096], out[4096], text[8192];
	nanochat_error *err = NULL;
	nanochat_job *job;
	const char *wrong = "train.stepz=1";
	int32_t finish = 0;
	long records;
	size_t n;

	snprintf(config, sizeof config, "%s/train.toml", dir);
	snprintf(out, sizeof out, "%s/run", dir);
	IS(NANOCHAT_E_INVALID, nanochat_train_open(config, &wrong, 1, NULL, &job, &err));
	CHECK(!job && strstr(nanochat_error_message(err), "stepz"));
	nanochat_error_free(err);
	IS(NANOCHAT_E_NOT_FOUND, nanochat_train_open("/none.toml", NULL, 0, NULL, &job, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_train_open(config, NULL, 1, NULL, &job, NULL));

	/* Cancelled after its first step it has a result, and goes on from there. */
	job = train(config, out, "2000", NULL);
	do {
		IS(NANOCHAT_OK,
		   nanochat_job_next(job, NANOCHAT_FOREVER, text, sizeof text - 1, &n, &finish, NULL));
		text[n] = 0;
	} while (!strstr(text, "\"type\":\"step\""));
	CHECK(strstr(text, "\"loss\":") && strstr(text, "\"steps\":2000"));
	IS(NANOCHAT_OK, nanochat_job_cancel(job));
	IS(NANOCHAT_OK, last(job, text, sizeof text, &finish, &records));
	CHECK(finish == NANOCHAT_FINISH_CANCELLED && strstr(text, "\"checkpoint\":\""));
	job = train(config, out, "300", "auto");
	IS(NANOCHAT_OK, last(job, text, sizeof text, &finish, &records));
	CHECK(finish == NANOCHAT_FINISH_STOP && strstr(text, "\"model\":\""));
	CHECK(strstr(text, "\"steps\":300") && strstr(text, "\"resumed_from\":"));
	job = train(config, out, "300", "none");
	IS(NANOCHAT_E_INVALID, last(job, text, sizeof text, &finish, &records));

	/* Closed while it runs it saves a checkpoint first. */
	snprintf(out, sizeof out, "%s/closed", dir);
	job = train(config, out, "2000", NULL);
	do {
		IS(NANOCHAT_OK,
		   nanochat_job_next(job, NANOCHAT_FOREVER, text, sizeof text - 1, &n, &finish, NULL));
		text[n] = 0;
	} while (!strstr(text, "\"type\":\"step\""));
	IS(NANOCHAT_OK, nanochat_job_close(job));
	snprintf(text, sizeof text, "%s/checkpoints/LATEST", out);
	CHECK(!access(text, R_OK));
}

/* divergence: with so narrow a limit, and so large steps, a loss soon lies above the mean. */
static void divergence(const char *dir)
{
	char config[4096], out[4096], text[8192];
	const char *sets[] = {out,
	                      "train.steps=300",
	                      "anomaly.patience=1",
	                      "anomaly.window=64",
	                      "anomaly.loss_sigma=0.001",
	                      "optim.embedding.lr=10"};
	nanochat_job *job;
	nanochat_error *err = NULL;
	int32_t finish;
	nanochat_status status;
	size_t n;

	snprintf(config, sizeof config, "%s/train.toml", dir);
	snprintf(out, sizeof out, "train.out='%s/diverging'", dir);
	IS(NANOCHAT_OK,
	   nanochat_train_open(config, sets, sizeof sets / sizeof *sets, "none", &job, NULL));
	do
		status = nanochat_job_next(job, NANOCHAT_FOREVER, text, sizeof text, &n, &finish, &err);
	while (!status && !finish);
	CHECK(status == NANOCHAT_E_DIVERGED);
	CHECK(strstr(nanochat_error_message(err), "step ") && *nanochat_error_hint(err));
	nanochat_error_free(err);
	IS(NANOCHAT_E_DIVERGED, nanochat_job_next(job, 0, text, sizeof text, &n, &finish, NULL));
	IS(NANOCHAT_OK, nanochat_job_close(job));
}

static void logging(const char *model)
{
	nanochat_job *job, *all;
	nanochat_model *opened;
	nanochat_stream *stream;
	char text[4096];
	int32_t finish;
	size_t n;

	IS(NANOCHAT_E_INVALID, nanochat_log_open("loud", &job, NULL));
	IS(NANOCHAT_OK, nanochat_log_open(NULL, &job, NULL));
	IS(NANOCHAT_E_TIMEOUT, nanochat_job_next(job, 10, text, sizeof text, &n, &finish, NULL));
	IS(NANOCHAT_OK, nanochat_model_close(open_model(model, 1)));
	IS(NANOCHAT_OK, nanochat_job_next(job, 0, text, sizeof text - 1, &n, &finish, NULL));
	text[n] = 0;
	CHECK(strstr(text, "model opened") && strstr(text, model) && !finish);
	IS(NANOCHAT_E_TIMEOUT, nanochat_job_next(job, 0, text, sizeof text, &n, &finish, NULL));
	IS(NANOCHAT_OK, nanochat_log_open("debug", &all, NULL));
	opened = open_model(model, 1);
	stream = open_stream(opened, 3);
	CHECK(read_all(stream) == 3);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(opened));
	for (int i = 0; i < 3; i++) {
		IS(NANOCHAT_OK, nanochat_job_next(all, 0, text, sizeof text - 1, &n, &finish, NULL));
		text[n] = 0;
	}
	CHECK(strstr(text, "\"msg\":\"stream closed\"") && strstr(text, "\"generated_tokens\":3"));
	IS(NANOCHAT_OK, nanochat_job_close(all));
	IS(NANOCHAT_E_INVALID, nanochat_job_next(job, 0, text, 9, NULL, &finish, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_job_next(job, 0, text, 9, &n, NULL, NULL));
	IS(NANOCHAT_OK, nanochat_job_cancel(job));
	IS(NANOCHAT_E_CANCELLED,
	   nanochat_job_next(job, NANOCHAT_FOREVER, text, sizeof text, &n, &finish, NULL));
	IS(NANOCHAT_OK, nanochat_job_close(job));
	IS(NANOCHAT_OK, nanochat_job_close(NULL));
}

int jobs(int argc, char **argv)
{
	CHECK(argc == 2);
	settings(argv[1]);
	zoo();
	downloads(argv[0]);
	trainings(argv[1]);
	divergence(argv[1]);
	logging(argv[0]);
	return 0;
}
