/*
 * Runs a program and kills it, with all its threads, when it is about to make its n-th call that changes something.
 *
 * usage: killer <n> <program> <argument>...
 * Says `killed before call <n>: <name>`, or `ended with <status> after <count> calls` if it made fewer.
 *
 * Counted over all threads: calls that change files, and those that change the kernel's modules. A write counts only if
 * it goes to a file; opening counts only if it may create or empty one. The kernel itself picks these calls out, so
 * the program runs at its own speed between them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct { int number; const char *name; } calls[] = {
	{ SYS_open, "open" }, { SYS_openat, "openat" }, { SYS_creat, "creat" },
	{ SYS_write, "write" }, { SYS_pwrite64, "pwrite64" }, { SYS_writev, "writev" }, { SYS_pwritev, "pwritev" },
	{ SYS_sendfile, "sendfile" }, { SYS_copy_file_range, "copy_file_range" }, { SYS_splice, "splice" },
	{ SYS_truncate, "truncate" }, { SYS_ftruncate, "ftruncate" }, { SYS_fallocate, "fallocate" },
	{ SYS_fsync, "fsync" }, { SYS_fdatasync, "fdatasync" }, { SYS_sync, "sync" }, { SYS_syncfs, "syncfs" },
	{ SYS_rename, "rename" }, { SYS_renameat, "renameat" }, { SYS_renameat2, "renameat2" },
	{ SYS_unlink, "unlink" }, { SYS_unlinkat, "unlinkat" }, { SYS_rmdir, "rmdir" },
	{ SYS_mkdir, "mkdir" }, { SYS_mkdirat, "mkdirat" },
	{ SYS_link, "link" }, { SYS_linkat, "linkat" }, { SYS_symlink, "symlink" }, { SYS_symlinkat, "symlinkat" },
	{ SYS_chmod, "chmod" }, { SYS_fchmod, "fchmod" }, { SYS_fchmodat, "fchmodat" },
	{ SYS_utimensat, "utimensat" }, { SYS_mount, "mount" }, { SYS_umount2, "umount2" },
	{ SYS_init_module, "init_module" }, { SYS_finit_module, "finit_module" }, { SYS_delete_module, "delete_module" },
};
#define CALLS (sizeof calls / sizeof *calls)

static void die(const char *what)
{
	perror(what);
	exit(99);
}

/* The kernel stops the program at these calls and at no others. */
static void pick_out(void)
{
	struct sock_filter filter[2 * CALLS + 2];
	size_t n = 0;

	filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < CALLS; i++) {
		filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, 0, 1);
		filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	}
	filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = n, .filter = filter };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp");
}

static int is_file(pid_t pid, unsigned long long descriptor)
{
	char path[64];
	struct stat about;

	if (descriptor <= 2)
		return 0; /* what it tells people */
	snprintf(path, sizeof path, "/proc/%d/fd/%llu", pid, descriptor);
	return stat(path, &about) == 0 && S_ISREG(about.st_mode);
}

/* The name of the call that the thread is about to make, if it counts. */
static const char *counts(pid_t pid)
{
	struct user_regs_struct regs;
	const int changing = O_CREAT | O_TRUNC;

	if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
		return NULL;
	switch (regs.orig_rax) {
	case SYS_open:
		if (!(regs.rsi & changing))
			return NULL;
		break;
	case SYS_openat:
		if (!(regs.rdx & changing))
			return NULL;
		break;
	case SYS_write: case SYS_pwrite64: case SYS_writev: case SYS_pwritev: case SYS_sendfile:
		if (!is_file(pid, regs.rdi))
			return NULL;
		break;
	case SYS_copy_file_range: case SYS_splice:
		if (!is_file(pid, regs.rdx))
			return NULL;
		break;
	}
	for (size_t i = 0; i < CALLS; i++)
		if (calls[i].number == (int)regs.orig_rax)
			return calls[i].name;
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 98;
	long last = atol(argv[1]), count = 0;
	const char *killed = NULL;
	pid_t first = fork();
	if (first < 0)
		die("fork");
	if (first == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		pick_out();
		execv(argv[2], argv + 2);
		die(argv[2]);
	}
	int status;
	if (waitpid(first, &status, 0) != first || !WIFSTOPPED(status))
		die("waitpid");
	long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK
		| PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
	if (ptrace(PTRACE_SETOPTIONS, first, 0, options) || ptrace(PTRACE_CONT, first, 0, 0))
		die("ptrace");
	for (;;) {
		pid_t pid = waitpid(-1, &status, __WALL);
		if (pid < 0) {
			if (errno == EINTR)
				continue;
			die("waitpid");
		}
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid == first)
				break;
			continue;
		}
		long deliver = 0;
		int event = status >> 16;
		if (event == PTRACE_EVENT_SECCOMP) {
			const char *call = killed ? NULL : counts(pid);
			if (call && ++count == last) {
				killed = call;
				kill(first, SIGKILL);
				continue;
			}
		} else if (event == 0 && WSTOPSIG(status) != SIGSTOP && WSTOPSIG(status) != SIGTRAP) {
			deliver = WSTOPSIG(status);
		}
		ptrace(PTRACE_CONT, pid, 0, deliver);
	}
	if (killed)
		printf("killed before call %ld: %s\n", count, killed);
	else
		printf("ended with %d after %ld calls\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), count);
	return 0;
}
