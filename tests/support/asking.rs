//! A kernel module that asks for firmware.

use anyhow::Result;

use super::bed::bed;
use super::kmods::{Kmod, compile};

/// Asks for the file of its parameter when it is loaded, and again whenever `ask` is written; prints what it got.
const ASKING: &str = r#"#include <linux/module.h>
#include <linux/firmware.h>
#include <linux/platform_device.h>
static struct platform_device *device;
static char *file = "@NAME@.bin";
module_param(file, charp, 0444);
static void ask(const char *name)
{
	const struct firmware *firmware;
	int error = request_firmware(&firmware, name, &device->dev);
	if (error) {
		pr_info("@NAME@: %s: error %d\n", name, error);
		return;
	}
	pr_info("@NAME@: %s: got %.*s\n", name, (int)firmware->size, firmware->data);
	release_firmware(firmware);
}
static int ask_set(const char *value, const struct kernel_param *param)
{
	char name[64];
	if (!device)
		return -ENODEV;
	strscpy(name, value, sizeof(name));
	ask(strim(name));
	return 0;
}
static const struct kernel_param_ops ask_ops = { .set = ask_set };
module_param_cb(ask, &ask_ops, NULL, 0200);
static int __init asking_init(void)
{
	device = platform_device_register_simple("@NAME@", -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	ask(file);
	return 0;
}
static void __exit asking_exit(void) { platform_device_unregister(device); }
module_init(asking_init);
module_exit(asking_exit);
MODULE_LICENSE("GPL");
"#;

/// The module under this name, for a kernel of the bed.
pub fn asking(release: &str, name: &str) -> Result<Kmod> {
    let source = format!("{name}.c");
    let files = [(source.as_str(), ASKING.replace("@NAME@", name)), ("Makefile", format!("obj-m := {name}.o\n"))];
    let folder = compile(bed()?.kernel_named(release)?, name, &[("1", &files)])?;
    Kmod::read(&folder.join("1").join(format!("{name}.ko")))
}
