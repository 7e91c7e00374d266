//! The signature that is appended to a module's file: whether there is one, not whether it is right.

/// What the kernel looks for at the very end of the file.
const MARKER: &[u8] = b"~Module signature appended~\n";
/// Length of `struct module_signature`, which stands before the marker.
const TRAILER: usize = 12;
/// The only kind of signature that kernels take today.
const PKCS7: u8 = 2;
/// DER of the attribute type `commonName`, `2.5.4.3`.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

/// An appended signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Who signed it, as the signature itself says: the common name in it that stands last.
    pub signer: Option<String>,
}

/// The signature at the end of an uncompressed module, if there is one that the kernel would look at.
///
/// One that is damaged counts too: the kernel tells it from a missing one.
/// Source: `include/linux/module_signature.h` and `mod_check_sig` of Linux.
pub fn appended(file: &[u8]) -> Option<Signature> {
    let rest = file.strip_suffix(MARKER)?;
    Some(Signature { signer: content(rest).and_then(signer) })
}

/// The PKCS#7 message in front of the trailer.
fn content(rest: &[u8]) -> Option<&[u8]> {
    let (rest, trailer) = rest.split_at_checked(rest.len().checked_sub(TRAILER)?)?;
    let length: [u8; 4] = trailer.get(8..12)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (trailer.get(2) == Some(&PKCS7)).then(|| rest.get(rest.len().checked_sub(length)?..)).flatten()
}

/// The last common name of the message: that of the issuer of the key, after certificates where there are any.
fn signer(message: &[u8]) -> Option<String> {
    let at = message.windows(COMMON_NAME.len()).rposition(|bytes| bytes == COMMON_NAME)? + COMMON_NAME.len();
    let length = usize::from(*message.get(at + 1)?);
    let text = message.get(at + 2..at + 2 + length)?;
    // Longer than 127 bytes is not the short form of DER, and no name.
    let name = String::from_utf8_lossy(text).trim().to_owned();
    (length < 128 && !name.is_empty() && !name.contains(char::is_control)).then_some(name)
}

#[cfg(test)]
pub(crate) mod testing {
    /// The file with a signature appended whose message is this.
    pub(crate) fn signed(file: &[u8], message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [file, message, &[0, 0, super::PKCS7, 0, 0, 0, 0, 0], &length, super::MARKER].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::signed;
    use super::*;

    fn name(text: &str) -> Vec<u8> {
        [COMMON_NAME, &[0x0c, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    }

    #[test]
    fn a_signature_is_found_at_the_end_only_and_tells_who_made_it() {
        let of = |signer: Option<&str>| Some(Signature { signer: signer.map(ToOwned::to_owned) });
        let chain = [name("a root"), b"..".to_vec(), name("the key of the build")].concat();
        let mut cut = signed(b"", b"");
        cut.remove(0);
        let mut other_kind = signed(b"module", &name("x"));
        let kind = other_kind.len() - MARKER.len() - TRAILER + 2;
        other_kind[kind] = 1;
        for (file, expected) in [
            (b"module".to_vec(), None),
            (b"".to_vec(), None),
            (MARKER.to_vec(), of(None)),
            (cut, of(None)),
            (signed(b"module", &chain), of(Some("the key of the build"))),
            (signed(b"module", b"garbage"), of(None)),
            (signed(b"module", &[COMMON_NAME, &[0x0c, 200]].concat()), of(None)),
            (signed(b"module", &[COMMON_NAME].concat()), of(None)),
            (other_kind, of(None)),
            ([signed(b"module", &chain), b"\n".to_vec()].concat(), None),
        ] {
            assert_eq!(appended(&file), expected, "{file:?}");
        }
        let whole = signed(b"module", &chain);
        for start in 0..whole.len() {
            let _ = appended(&whole[start..]);
        }
    }
}
