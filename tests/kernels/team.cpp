// Many short calls of team.cpp by several threads at once, under the thread sanitizer: 0 if all is right.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <pthread.h>
#include <unistd.h>
#include <sys/wait.h>

extern "C" void ddfm_team_starts(void *);
extern "C" void ddfm_team(void (*)(void *), void *, unsigned, unsigned);

constexpr int PIECES = 64, CALLS = 400;

struct Sum {
    std::atomic<int> next{0};
    int64_t found[PIECES] = {};  // not atomic, as results are
};

static void add(void *argument) {
    Sum &sum = *(Sum *)argument;
    for (int i; (i = sum.next.fetch_add(1)) < PIECES;) sum.found[i] = i;
}

static void *caller(void *threads) {
    for (int call = 0; call < CALLS; call++) {
        Sum sum;
        ddfm_team(add, &sum, (unsigned)(intptr_t)threads, 0);
        int64_t total = 0;
        for (int64_t found : sum.found) total += found;
        if (total != PIECES * (PIECES - 1) / 2) return (void *)1;
        if (call % 50 == 0) usleep(2000);  // workers fall asleep
    }
    return nullptr;
}

static bool several() {
    pthread_t threads[3];
    for (intptr_t k = 0; k < 3; k++) pthread_create(threads + k, nullptr, caller, (void *)(k + 2));
    bool right = true;
    for (pthread_t thread : threads) {
        void *failed = nullptr;
        pthread_join(thread, &failed);
        right = right && !failed;
    }
    return right;
}

int main(int count, char **) {
    if (caller((void *)2)) return 2;  // before threads can be started: alone
    ddfm_team_starts((void *)pthread_create);
    if (!several()) return 3;
    if (count > 1) return 0;  // the thread sanitizer knows no threads after a fork
    const pid_t child = fork();
    if (child == 0) _exit(several() ? 0 : 4);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
}
