//! Modules that do what they should not: they hang, are held open or mounted, or need more memory than there is.

use anyhow::{Context, Result, ensure};

use crate::support::bed;
use crate::support::kmods::{Kmod, compile};

/// Its init function returns when its parameter `release` is set.
const HANG: &str = r#"#include <linux/module.h>
#include <linux/delay.h>
static bool release;
module_param(release, bool, 0644);
static int __init hang_init(void) { while (!READ_ONCE(release)) msleep(50); return 0; }
static void __exit hang_exit(void) { }
module_init(hang_init);
module_exit(hang_exit);
MODULE_LICENSE("GPL");
"#;

/// A device file `/dev/kmm-misc` that counts as a reference while it is open.
const MISC: &str = r#"#include <linux/module.h>
#include <linux/miscdevice.h>
#include <linux/fs.h>
static const struct file_operations operations = { .owner = THIS_MODULE };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "kmm-misc", .fops = &operations };
static int __init misc_test_init(void) { return misc_register(&device); }
static void __exit misc_test_exit(void) { misc_deregister(&device); }
module_init(misc_test_init);
module_exit(misc_test_exit);
MODULE_LICENSE("GPL");
"#;

/// An empty filesystem whose type is not named like the module.
const FS: &str = r#"#include <linux/module.h>
#include <linux/fs.h>
static const struct tree_descr nothing[] = { { "" } };
static int fill(struct super_block *super, void *data, int silent) { return simple_fill_super(super, 0x6b6d6d, nothing); }
static struct dentry *mount(struct file_system_type *type, int flags, const char *device, void *data)
{
	return mount_nodev(type, flags, data, fill);
}
static struct file_system_type kind = { .owner = THIS_MODULE, .name = "emptydata", .mount = mount, .kill_sb = kill_litter_super };
static int __init fs_init(void) { return register_filesystem(&kind); }
static void __exit fs_exit(void) { unregister_filesystem(&kind); }
module_init(fs_init);
module_exit(fs_exit);
MODULE_LICENSE("GPL");
MODULE_ALIAS_FS("emptydata");
"#;

/// Network interfaces that count as a reference while they are up: `bednet0`, of a driver whose name is not the module's,
/// and `kmm_net0`, of no driver.
const NET: &str = r#"#include <linux/module.h>
#include <linux/etherdevice.h>
#include <linux/platform_device.h>
static struct net_device *driven, *alone;
static struct platform_device *device;
static int net_open(struct net_device *net) { return try_module_get(THIS_MODULE) ? 0 : -ENODEV; }
static int net_stop(struct net_device *net) { module_put(THIS_MODULE); return 0; }
static netdev_tx_t net_send(struct sk_buff *buffer, struct net_device *net) { dev_kfree_skb(buffer); return NETDEV_TX_OK; }
static const struct net_device_ops operations = { .ndo_open = net_open, .ndo_stop = net_stop, .ndo_start_xmit = net_send };
static struct net_device *make(const char *name, struct device *parent)
{
	struct net_device *net = alloc_netdev(0, name, NET_NAME_ENUM, ether_setup);
	if (!net)
		return NULL;
	net->netdev_ops = &operations;
	eth_hw_addr_random(net);
	SET_NETDEV_DEV(net, parent);
	if (!register_netdev(net))
		return net;
	free_netdev(net);
	return NULL;
}
static void drop(struct net_device *net) { if (net) { unregister_netdev(net); free_netdev(net); } }
static int probe(struct platform_device *found) { driven = make("bednet%d", &found->dev); return driven ? 0 : -ENOMEM; }
static struct platform_driver driver = { .probe = probe, .driver = { .name = "bed-net" } };
static int __init net_test_init(void)
{
	int error = platform_driver_register(&driver);
	if (error)
		return error;
	device = platform_device_register_simple("bed-net", PLATFORM_DEVID_NONE, NULL, 0);
	alone = make("kmm_net%d", NULL);
	return 0;
}
static void __exit net_test_exit(void)
{
	drop(alone);
	drop(driven);
	platform_device_unregister(device);
	platform_driver_unregister(&driver);
}
module_init(net_test_init);
module_exit(net_test_exit);
MODULE_LICENSE("GPL");
"#;

/// More memory than the machine has.
const HUGE: &str = r#"#include <linux/module.h>
static char memory[600 << 20];
static int __init huge_init(void) { memory[jiffies & 0xff] = 1; return memory[1]; }
static void __exit huge_exit(void) { }
module_init(huge_init);
module_exit(huge_exit);
MODULE_LICENSE("GPL");
"#;

/// One of these modules, for the bed's usual kernel.
pub(crate) fn special(name: &str) -> Result<Kmod> {
    let files = [
        ("kmm_hang.c", HANG.to_owned()),
        ("kmm_misc.c", MISC.to_owned()),
        ("kmm_fs.c", FS.to_owned()),
        ("kmm_net.c", NET.to_owned()),
        ("kmm_huge.c", HUGE.to_owned()),
        ("Makefile", "obj-m := kmm_hang.o kmm_misc.o kmm_fs.o kmm_net.o kmm_huge.o\n".to_owned()),
    ];
    let folder = compile(bed()?.kernel(), "special", &[("1", &files)])?;
    Kmod::read(&folder.join("1").join(format!("{name}.ko")))
}

/// The file with `from` replaced by `to`, of the same length, at every place.
pub(crate) fn patched(module: &Kmod, from: &str, to: &str) -> Result<Vec<u8>> {
    ensure!(from.len() == to.len(), "`{from}` and `{to}` are of different lengths");
    let mut bytes = module.bytes.clone();
    let mut at = 0;
    let mut places = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        at += found;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        places += 1;
    }
    ensure!(places > 0, "{} does not contain `{from}`", module.file_name);
    Ok(bytes)
}

/// The file with a signature appended, whose message is this.
pub(crate) fn signed(module: &Kmod, message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len())?.to_be_bytes();
    Ok([&module.bytes, message, &[0, 0, 2, 0, 0, 0, 0, 0], &length, b"~Module signature appended~\n"].concat())
}

/// The file signed rightly with a key that no kernel knows.
pub(crate) fn signed_by_a_stranger(module: &Kmod) -> Result<Vec<u8>> {
    let folder = bed()?.new_dir("stranger")?;
    let openssl = |arguments: &[&str]| -> Result<()> {
        let out = std::process::Command::new("openssl").args(arguments).current_dir(&folder).output();
        let out = out.context("starting openssl")?;
        ensure!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    };
    std::fs::write(folder.join("module"), &module.bytes)?;
    let subject = "/CN=a stranger";
    openssl(&["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", "key", "-out", "cert"])?;
    openssl(&[
        "cms", "-sign", "-binary", "-noattr", "-nocerts", "-md", "sha256", "-outform", "DER", "-signer", "cert",
        "-inkey", "key", "-in", "module", "-out", "message",
    ])?;
    signed(module, &std::fs::read(folder.join("message"))?)
}
