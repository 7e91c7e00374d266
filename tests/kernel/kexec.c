/*
 * Boots another kernel out of the running one, as a fast reboot does: no firmware, no reset of the machine.
 *
 * usage: kexec <kernel> <initramfs>
 * The command line is that of the running kernel. What is not written yet is written before.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

static int opened(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0)
		err(1, "opening %s", path);
	return file;
}

int main(int argc, char **argv)
{
	static char line[4096];
	ssize_t length;

	if (argc != 3)
		errx(2, "usage: kexec <kernel> <initramfs>");
	length = read(opened("/proc/cmdline"), line, sizeof(line) - 1);
	if (length <= 0)
		err(1, "reading /proc/cmdline");
	/* It ends with a new line; the kernel wants a 0 there, and counts it. */
	line[length - 1] = 0;
	if (syscall(SYS_kexec_file_load, opened(argv[1]), opened(argv[2]), length, line, 0))
		err(1, "loading %s", argv[1]);
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
	err(1, "starting %s", argv[1]);
}
