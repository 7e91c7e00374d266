//! Refusals of the kernel in words.

use nix::errno::Errno;

use crate::api::names::NodeReason;
use crate::worker::facts::{Refused, Trouble};

/// Most missing symbols that a sentence names.
const NAMED_SYMBOLS: usize = 10;

/// A refused load in words.
///
/// `signer` is who signed the module, as the file says. The log is looked at where one number means several things.
/// Source: `load_module`, `module_sig_check`, `simplify_symbols`, `parse_args` and `check_modinfo` of Linux.
pub fn load_trouble(name: &str, signer: Option<&str>, refused: &Refused) -> Trouble {
    let log = refused.log.as_deref();
    let (reason, what) = reason_of(refused.errno, log);
    let signer = signer.filter(|_| reason == NodeReason::SignatureRejected);
    let signer = signer.map(|signer| format!(" (it is signed by `{signer}`)")).unwrap_or_default();
    Trouble::new(reason, format!("module {name} was not loaded, {what}{signer}: {refused}"))
}

fn reason_of(errno: Errno, log: Option<&[String]>) -> (NodeReason, String) {
    use NodeReason as Reason;
    let says = |text: &str| log.is_some_and(|lines| lines.iter().any(|line| line.contains(text)));
    let (reason, what) = match errno {
        // A value that a parameter's own function refuses may come with any number.
        _ if says("for parameter") => (Reason::ParameterRefused, "the kernel refuses the value of a parameter"),
        Errno::ENOEXEC if says("version magic") => (Reason::VermagicMismatch, "it was built for another kernel"),
        Errno::ENOEXEC | Errno::EINVAL
            if says("disagrees about version of symbol") || says("no symbol version") || says("no version for") =>
        {
            (Reason::SymbolMissing, "the kernel has a symbol that it uses in another version")
        }
        Errno::ENOEXEC if says(".gnu.linkonce.this_module") => (
            Reason::VermagicMismatch,
            "it was built against headers of another configuration of this kernel; build it with those of the kernel that runs",
        ),
        Errno::EINVAL if says("BTF") => (
            Reason::VermagicMismatch,
            "its type information (BTF) does not fit that of the running kernel; build it against the vmlinux of this kernel, \
             or without the section .BTF (strip it with `objcopy --remove-section .BTF`)",
        ),
        Errno::EINVAL if says("from namespace") => {
            (Reason::SymbolMissing, "it uses a symbol of a namespace that it does not import")
        }
        Errno::ENOENT => return missing(log),
        Errno::ENOEXEC if log.is_none() => (
            Reason::KernelRefused,
            "the kernel cannot take this file: its version, or that of a symbol, may be another",
        ),
        Errno::ENOEXEC => (Reason::KernelRefused, "the kernel cannot take this file"),
        Errno::EINVAL => {
            (Reason::KernelRefused, "the kernel refuses a parameter, or the module itself refuses to start")
        }
        Errno::EKEYREJECTED if says("unsigned module") => {
            (Reason::SignatureMissing, "it has no signature and the kernel takes only signed modules")
        }
        Errno::EKEYREJECTED if says("unsupported crypto") => {
            (Reason::SignatureRejected, "the kernel lacks an algorithm of its signature; sign it with another")
        }
        Errno::EKEYREJECTED if says("unavailable key") => (
            Reason::SignatureRejected,
            "the kernel does not know the key that it is signed with; it takes those of its keyrings .builtin_trusted_keys and \
             .secondary_trusted_keys, and one enrolled as MOK only where the kernel trusts its keyring .machine for modules",
        ),
        Errno::ENOKEY => (
            Reason::SignatureRejected,
            "the kernel has the key of its signature in no keyring that it trusts for modules (.builtin_trusted_keys, \
             .secondary_trusted_keys; one enrolled as MOK only where .machine is among them)",
        ),
        Errno::EKEYREJECTED => (
            Reason::SignatureRejected,
            "its signature does not fit its content, or the kernel does not know the key; sign it with one that it knows",
        ),
        Errno::EBADMSG => (Reason::SignatureRejected, "its signature is damaged; sign it again"),
        Errno::ENOPKG => (
            Reason::SignatureRejected,
            "its signature is of an algorithm that the kernel does not have; sign it with another",
        ),
        Errno::EKEYREVOKED | Errno::EKEYEXPIRED => {
            (Reason::SignatureRejected, "the key of its signature is not valid any more; sign it with another")
        }
        Errno::EPERM if says("is blacklisted") => {
            (Reason::NotPermitted, "module_blacklist= on the kernel's command line names it; take it out and reboot")
        }
        Errno::EPERM if says("LoadPin:") => (
            Reason::NotPermitted,
            "LoadPin takes modules from the file system of the first one only, and this file lies on another; keep the \
             worker's state folder on that file system, or boot with loadpin.enforce=0",
        ),
        Errno::EPERM if says("Lockdown:") => (Reason::NotPermitted, "the kernel is locked down and does not trust it"),
        Errno::EPERM => (
            Reason::NotPermitted,
            "loading it is not permitted (lockdown, modules_disabled, or the worker is not privileged)",
        ),
        Errno::EACCES if says("{ module_load }") => (
            Reason::NotPermitted,
            "SELinux forbids to load a file of this label; give the worker's state folder one that may be loaded, for instance \
             `semanage fcontext -a -t modules_object_t '/var/lib/kmm/trees(/.*)?'` and `restorecon -R /var/lib/kmm/trees`",
        ),
        Errno::EACCES => (Reason::NotPermitted, "a security module of the kernel (IMA, SELinux, …) forbids it"),
        Errno::ENOSYS => (Reason::NotPermitted, "this kernel was built without loadable modules"),
        Errno::ENOMEM => (Reason::OutOfMemory, "the kernel has not enough memory; it is tried again"),
        Errno::EEXIST => (Reason::KernelRefused, "a module of that name is in the kernel"),
        Errno::EBUSY => {
            (Reason::KernelRefused, "a module of that name is starting or ending, or what it wants to drive is taken")
        }
        Errno::ETXTBSY => (Reason::KernelRefused, "its file is being written to; it is tried again"),
        Errno::EFBIG | Errno::E2BIG => (Reason::KernelRefused, "it is larger than the kernel accepts"),
        Errno::ELOOP => (Reason::KernelRefused, "links lead in a circle where its file should be"),
        Errno::ENODEV | Errno::ENXIO => (Reason::KernelRefused, "it finds no device that it drives"),
        Errno::EIO => (Reason::KernelRefused, "its file, or its device, cannot be read"),
        Errno::ETIMEDOUT => (Reason::KernelRefused, "its device did not answer in time"),
        Errno::EINTR => (Reason::KernelRefused, "it was interrupted; it is tried again"),
        _ => (Reason::KernelRefused, "it refused to start"),
    };
    (reason, what.to_owned())
}

/// `ENOENT` is a missing symbol, which the log names, or the answer of the module's own init function.
fn missing(log: Option<&[String]>) -> (NodeReason, String) {
    let Some(log) = log else {
        let what = "the kernel lacks a symbol that it uses; which one stands in the kernel's log, which this worker cannot \
                    read";
        return (NodeReason::SymbolMissing, what.to_owned());
    };
    let mut symbols: Vec<&str> = log.iter().filter_map(|line| unknown_symbol(line)).collect();
    symbols.dedup();
    if symbols.is_empty() {
        return (NodeReason::KernelRefused, "something that it asked for is not there".to_owned());
    }
    let more = symbols.len().saturating_sub(NAMED_SYMBOLS);
    symbols.truncate(NAMED_SYMBOLS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (NodeReason::SymbolMissing, format!("the kernel lacks what it uses: {}{more}", symbols.join(", ")))
}

/// `name: Unknown symbol f (err -2)`.
fn unknown_symbol(line: &str) -> Option<&str> {
    line.split_once("Unknown symbol ")?.1.split_whitespace().next()
}

/// A refused unload in words.
///
/// Source: `delete_module` of Linux.
pub fn unload_trouble(name: &str, refused: &Refused) -> Trouble {
    let (reason, what) = match refused.errno {
        Errno::EAGAIN => (NodeReason::InUse, "something uses it; it goes as soon as nothing does"),
        Errno::EBUSY => {
            (NodeReason::InUse, "it is starting or ending, or has no exit function and leaves only by a reboot")
        }
        Errno::EPERM | Errno::EACCES => (
            NodeReason::NotPermitted,
            "unloading modules is not permitted (modules_disabled, or the worker is not privileged)",
        ),
        Errno::ENOSYS => (NodeReason::NotPermitted, "this kernel cannot unload modules; it leaves only by a reboot"),
        _ => (NodeReason::KernelRefused, "the kernel refused"),
    };
    Trouble::new(reason, format!("module {name} was not unloaded, {what}: {refused}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno, log: &[&str]) -> Refused {
        Refused { errno, log: Some(log.iter().map(|line| (*line).to_owned()).collect()) }
    }

    #[test]
    fn each_refusal_of_a_load_has_its_reason() {
        use NodeReason as Reason;
        let table = [
            (Errno::ENOENT, "kmm_a: Unknown symbol f (err -2)", Reason::SymbolMissing),
            (Errno::ENOENT, "", Reason::KernelRefused),
            (Errno::EINVAL, "kmm_a: disagrees about version of symbol x", Reason::SymbolMissing),
            (
                Errno::EINVAL,
                "kmm_a: module uses symbol (x) from namespace Y, but does not import it.",
                Reason::SymbolMissing,
            ),
            (Errno::ENOEXEC, "kmm_a: disagrees about version of symbol module_layout", Reason::SymbolMissing),
            (Errno::EINVAL, "kmm_a: `abc' invalid for parameter `level'", Reason::ParameterRefused),
            (Errno::ERANGE, "kmm_a: `999' invalid for parameter `level'", Reason::ParameterRefused),
            (Errno::ENOSPC, "kmm_a: `abc' too large for parameter `text'", Reason::ParameterRefused),
            (Errno::EINVAL, "", Reason::KernelRefused),
            (Errno::ENOEXEC, "kmm_a: version magic '5' should be '6'", Reason::VermagicMismatch),
            (Errno::ENOEXEC, "", Reason::KernelRefused),
            (
                Errno::ENOEXEC,
                "kmm_a: .gnu.linkonce.this_module section size must match the kernel's built struct module size at run time",
                Reason::VermagicMismatch,
            ),
            (Errno::EINVAL, "failed to validate module [kmm_a] BTF: -22", Reason::VermagicMismatch),
            (Errno::EPERM, "LoadPin: kernel-module denied obj=\"/x.ko\"", Reason::NotPermitted),
            (Errno::EACCES, "audit: avc:  denied  { module_load } for  path=\"/x.ko\"", Reason::NotPermitted),
            (Errno::EKEYREJECTED, "Loading of unsigned module is rejected", Reason::SignatureMissing),
            (Errno::EKEYREJECTED, "Loading of module with unavailable key is rejected", Reason::SignatureRejected),
            (Errno::ENOKEY, "", Reason::SignatureRejected),
            (Errno::EBADMSG, "", Reason::SignatureRejected),
            (Errno::ENOPKG, "", Reason::SignatureRejected),
            (Errno::EKEYEXPIRED, "", Reason::SignatureRejected),
            (Errno::EPERM, "", Reason::NotPermitted),
            (Errno::EPERM, "Module kmm_a is blacklisted", Reason::NotPermitted),
            (Errno::EPERM, "Lockdown: kmm: unsigned module loading is restricted", Reason::NotPermitted),
            (Errno::EACCES, "", Reason::NotPermitted),
            (Errno::ENOSYS, "", Reason::NotPermitted),
            (Errno::ENOMEM, "", Reason::OutOfMemory),
            (Errno::EEXIST, "", Reason::KernelRefused),
            (Errno::EBUSY, "", Reason::KernelRefused),
            (Errno::ETXTBSY, "", Reason::KernelRefused),
            (Errno::E2BIG, "", Reason::KernelRefused),
            (Errno::ELOOP, "", Reason::KernelRefused),
            (Errno::ENODEV, "", Reason::KernelRefused),
            (Errno::EIO, "", Reason::KernelRefused),
            (Errno::EFAULT, "", Reason::KernelRefused),
        ];
        let mut sentences = std::collections::BTreeSet::new();
        for (errno, log, expected) in table {
            let log: &[&str] = if log.is_empty() { &[] } else { &[log] };
            let trouble = load_trouble("kmm_a", Some("a stranger"), &refused(errno, log));
            let told = trouble.message.contains("(it is signed by `a stranger`)");
            assert_eq!(told, expected == Reason::SignatureRejected, "{}", trouble.message);
            assert_eq!(trouble.reason, expected, "{errno} {log:?}");
            assert!(sentences.insert(trouble.message), "two refusals in the same words: {errno} {log:?}");
        }
    }

    #[test]
    fn each_refusal_of_an_unload_has_its_reason() {
        for (errno, expected) in [
            (Errno::EAGAIN, NodeReason::InUse),
            (Errno::EBUSY, NodeReason::InUse),
            (Errno::EPERM, NodeReason::NotPermitted),
            (Errno::ENOSYS, NodeReason::NotPermitted),
            (Errno::EINTR, NodeReason::KernelRefused),
        ] {
            assert_eq!(unload_trouble("kmm_a", &errno.into()).reason, expected, "{errno}");
        }
    }

    #[test]
    fn missing_symbols_are_named_as_far_as_the_log_can_be_read() {
        let lines = ["kmm_a: Unknown symbol f (err -2)", "kmm_a: Unknown symbol g (err -2)", "kmm_a: other"];
        assert_eq!(
            load_trouble("kmm_a", None, &refused(Errno::ENOENT, &lines)).message,
            "module kmm_a was not loaded, the kernel lacks what it uses: f, g: ENOENT: No such file or directory; the kernel \
             says: kmm_a: Unknown symbol f (err -2) | kmm_a: Unknown symbol g (err -2) | kmm_a: other"
        );
        let many: Vec<String> = (0..14).map(|n| format!("kmm_a: Unknown symbol s{n} (err -2)")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let message = load_trouble("kmm_a", None, &refused(Errno::ENOENT, &many)).message;
        assert!(message.contains("s8, s9 and 4 more: ENOENT"), "{message}");
        let unread = Refused { errno: Errno::ENOENT, log: None };
        assert_eq!(
            load_trouble("kmm_a", None, &unread).message,
            "module kmm_a was not loaded, the kernel lacks a symbol that it uses; which one stands in the kernel's log, which \
             this worker cannot read: ENOENT: No such file or directory"
        );
        let trouble = load_trouble("kmm_a", None, &Refused { errno: Errno::ENOEXEC, log: None });
        assert!(trouble.message.contains("may be another"), "{}", trouble.message);
    }
}
