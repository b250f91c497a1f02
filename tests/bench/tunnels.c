/* New tunnels as fast as one core opens them, and their upstream, in one process (tunnels.py compiles and drives it).
 *
 *   tunnels new PROXY_PORT UPSTREAM_PORT NAME HELLO_HEX PID PARALLEL SECONDS
 *   tunnels added PROXY_PORT UPSTREAM_PORT NAME HELLO_HEX PID COUNT
 *
 * `new` opens PARALLEL tunnels at a time: connect, CONNECT, 200, hello, the upstream's answer, close; and prints for each
 * tenth of a second how many there were and how much processor time the process PID took (nanoseconds).
 * `added` opens COUNT tunnels one after the other, and before each a direct connection, and prints the nanoseconds from
 * connect to the answer: one line for each pair, direct first. Every answer is checked; a wrong one ends the run with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 65536, EVENTS = 64, WINDOW_NS = 100000000 };
enum state { NONE, LISTENER, PEER, GREETED, AWAITS_200, AWAITS_PONG };

static const char pong[] = "the upstream has seen the whole hello";
static char state[FDS], head[512], hello[2048];
static int head_size, hello_size, got[FDS], poller, proxy_port, upstream_port, pid;

static void die(const char *what, const char *data, ssize_t size) {
    fprintf(stderr, "%s: %.*s (%s)\n", what, data ? (int)(size > 200 ? 200 : size) : 0, data ? data : "", strerror(errno));
    exit(1);
}

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Processor time of all threads of the process under test. */
static long cpu_ns(void) {
    char path[320], line[128];
    long total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) die("the proxy is gone", NULL, 0);
    for (struct dirent *one; (one = readdir(tasks));) {
        if (one->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, one->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(line, sizeof line, file)) total += atol(line);
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static void watch(int fd, enum state what) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= FDS || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll", NULL, 0);
    state[fd] = what;
    got[fd] = 0;
}

static struct sockaddr_in at(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void say(int fd, const char *data, int size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != size) die("send", NULL, 0);
}

static int begin(int through_proxy) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in to = at(through_proxy ? proxy_port : upstream_port);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect", NULL, 0);
    if (through_proxy) say(fd, head, head_size); else say(fd, hello, hello_size);
    watch(fd, through_proxy ? AWAITS_200 : AWAITS_PONG);
    return fd;
}

/* One event; the descriptor of a tunnel that has carried bytes both ways, or -1. */
static int advance(int fd) {
    char data[65536];
    if (state[fd] == LISTENER) {
        for (int peer; (peer = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) watch(peer, PEER);
        return -1;
    }
    ssize_t size = recv(fd, data, sizeof data, 0);
    switch (state[fd]) {
    case PEER:
    case GREETED:
        if (size <= 0) {
            state[fd] = NONE;
            close(fd);
        } else if (state[fd] == PEER) {
            if (got[fd] + size > hello_size || memcmp(data, hello + got[fd], size)) die("the upstream was sent", data, size);
            got[fd] += size;
            if (got[fd] == hello_size) {
                say(fd, pong, sizeof pong - 1);
                state[fd] = GREETED;
            }
        }
        return -1;
    case AWAITS_200:
        if (size < 16 || !memmem(data, 16, " 200 ", 5) || memcmp(data + size - 4, "\r\n\r\n", 4)) die("CONNECT was answered with", data, size);
        say(fd, hello, hello_size);
        state[fd] = AWAITS_PONG;
        return -1;
    case AWAITS_PONG:
        if (size != sizeof pong - 1 || memcmp(data, pong, size)) die("the tunnel brought", data, size);
        state[fd] = NONE;
        close(fd);
        return fd;
    }
    return -1;
}

static int wait_events(struct epoll_event *events) {
    int count = epoll_wait(poller, events, EVENTS, 10000);
    if (count <= 0) die("nothing moved for ten seconds", NULL, 0);
    return count;
}

static void new_tunnels(int parallel, double seconds) {
    struct epoll_event events[EVENTS];
    long end = now_ns() + (long)(seconds * 1e9), next = now_ns() + WINDOW_NS, cpu = cpu_ns(), since = now_ns();
    long done = 0, open = parallel;
    int going = 1;
    for (int i = 0; i < parallel; i++) begin(1);
    while (open) {
        int count = wait_events(events);
        for (int i = 0; i < count; i++) {
            if (advance(events[i].data.fd) < 0) continue;
            done++;
            if (going) begin(1); else open--;
        }
        long now = now_ns();
        if (now >= next) {
            long used = cpu_ns();
            printf("%ld %ld %ld %d\n", done, used - cpu, now - since, going);
            cpu = used, since = now, next = now + WINDOW_NS, done = 0, going = going && now < end;
        }
    }
    printf("%ld 0 0 0\n", done);
}

static void added(int count) {
    struct epoll_event events[EVENTS];
    for (int i = 0; i < count; i++) {
        long took[2];
        for (int through = 0; through < 2; through++) {
            long start = now_ns();
            int fd = begin(through), done = 0;
            while (!done) {
                int number = wait_events(events);
                for (int j = 0; j < number; j++) done |= advance(events[j].data.fd) == fd;
            }
            took[through] = now_ns() - start;
        }
        printf("%ld %ld\n", took[0], took[1]);
    }
}

int main(int argc, char **argv) {
    if (argc < 8) die("too few arguments", NULL, 0);
    proxy_port = atoi(argv[2]), upstream_port = atoi(argv[3]), pid = atoi(argv[6]);
    head_size = snprintf(head, sizeof head, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", argv[4], upstream_port, argv[4], upstream_port);
    for (const char *hex = argv[5]; sscanf(hex, "%2hhx", (unsigned char *)hello + hello_size) == 1; hex += 2) hello_size++;
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in here = at(upstream_port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) die("listen", NULL, 0);
    watch(listener, LISTENER);
    if (!strcmp(argv[1], "new") && argc > 8) new_tunnels(atoi(argv[7]), atof(argv[8]));
    else if (!strcmp(argv[1], "added")) added(atoi(argv[7]));
    else die("new or added", NULL, 0);
    return 0;
}
