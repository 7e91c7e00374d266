//! The kernel's log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;

/// Most lines of the kernel's log that are taken, and their length.
const MAX_LOG_LINES: usize = 64;
const MAX_LOG_LINE: usize = 200;

/// The kernel's log from the moment of opening on.
pub(super) struct Log(Option<File>);

impl Log {
    pub(super) fn open(path: &Path) -> Self {
        let open = || -> io::Result<File> {
            let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        Self(open().ok())
    }

    /// What was written meanwhile about the module, or about what modules must be; `None` if it cannot be read.
    pub(super) fn about(&mut self, module: &str) -> Option<Vec<String>> {
        self.lines(|record| message_about(record, module))
    }

    /// Whether a message of that kind was written meanwhile.
    pub(super) fn says(&mut self, kind: fn(&str) -> bool) -> bool {
        let said = self.lines(|record| Some(message(&String::from_utf8_lossy(record))?.to_owned()).filter(|m| kind(m)));
        said.is_some_and(|lines| !lines.is_empty())
    }

    fn lines(&mut self, wanted: impl Fn(&[u8]) -> Option<String>) -> Option<Vec<String>> {
        let file = self.0.as_mut()?;
        let mut lines = Vec::new();
        let mut record = [0; 8 * 1024];
        // One read is one record. Bounded, for a kernel that logs faster than it is read.
        for _ in 0..1000 {
            match file.read(&mut record) {
                Ok(length) if length > 0 => lines.extend(wanted(&record[..length])),
                // Records that were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                _ => break,
            }
            if lines.len() >= MAX_LOG_LINES {
                break;
            }
        }
        Some(lines)
    }
}

/// The message of one record of `/dev/kmsg`: `priority,sequence,time,flags;message`.
pub(super) fn message(record: &str) -> Option<&str> {
    Some(record.split_once(';')?.1.lines().next()?.trim())
}

/// The message of a record if it is about the module, or one of the sentences that the kernel does not begin with a
/// module's name.
fn message_about(record: &[u8], module: &str) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let message = message(&record)?;
    let named = message.strip_prefix(module).is_some_and(|rest| rest.starts_with(':'));
    let blacklisted = message.ends_with(&format!("odule {module} is blacklisted"));
    // Of `module_sig_check` and of lockdown; prefixed with the part of the kernel in some versions.
    let signature = message.contains("Loading of ") && message.ends_with(" is rejected");
    // Of lockdown and of LoadPin, which name the file or the process.
    let policy = message.starts_with("Lockdown: ") || message.starts_with("LoadPin: ");
    // Of the audit, where no daemon takes what SELinux says.
    let denied = message.contains("avc:") && message.contains("{ module_load }");
    let btf = message.contains(&format!("failed to validate module [{module}] BTF"));
    (named || blacklisted || signature || policy || denied || btf).then(|| message.chars().take(MAX_LOG_LINE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_says_of_the_module_is_taken_from_its_log() {
        for (record, expected) in [
            ("4,1234,99,-;kmm_a: Unknown symbol f (err -2)\n SUBSYSTEM=x\n", Some("kmm_a: Unknown symbol f (err -2)")),
            ("4,1235,99,-;kmm_ab: other\n", None),
            ("4,1236,99,-;net: kmm_a: x\n", None),
            ("3,1237,99,-;Module kmm_a is blacklisted\n", Some("Module kmm_a is blacklisted")),
            ("3,1238,99,-;Module kmm_ab is blacklisted\n", None),
            ("5,1239,99,-;Loading of unsigned module is rejected\n", Some("Loading of unsigned module is rejected")),
            (
                "5,1240,99,-;Lockdown: kmm: unsigned module loading is restricted; see man kernel_lockdown.7",
                Some("Lockdown: kmm: unsigned module loading is restricted; see man kernel_lockdown.7"),
            ),
            (
                "5,1241,99,-;LoadPin: kernel-module denied obj=\"/var/lib/kmm/x.ko\" pid=7 cmdline=\"kmm worker\"",
                Some("LoadPin: kernel-module denied obj=\"/var/lib/kmm/x.ko\" pid=7 cmdline=\"kmm worker\""),
            ),
            (
                "5,1242,99,-;audit: type=1400 audit(1:2): avc:  denied  { module_load } for  path=\"/x.ko\"",
                Some("audit: type=1400 audit(1:2): avc:  denied  { module_load } for  path=\"/x.ko\""),
            ),
            ("5,1243,99,-;audit: type=1400 audit(1:2): avc:  denied  { read } for  path=\"/x\"", None),
            (
                "4,1244,99,-;failed to validate module [kmm_a] BTF: -22",
                Some("failed to validate module [kmm_a] BTF: -22"),
            ),
            ("4,1245,99,-;failed to validate module [kmm_ab] BTF: -22", None),
            ("garbage", None),
            ("", None),
        ] {
            assert_eq!(message_about(record.as_bytes(), "kmm_a").as_deref(), expected, "{record}");
        }
    }
}
