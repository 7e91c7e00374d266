//! A module's file: what must be known of it before the kernel gets it, and what proves afterwards that it runs.

use object::elf::{self, FileHeader32, FileHeader64, NT_GNU_BUILD_ID};
use object::read::StringTable;
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, FileKind, ReadRef};
use serde::{Deserialize, Serialize};

use super::modinfo::{self, Modinfo};
use super::signature::{self, Signature};
use crate::core::hash::hex;

/// Why a file is no module for this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read as ELF.
    #[error("not an ELF file: {0}")]
    NotElf(String),
    /// It is a program or a library.
    #[error("not a relocatable ELF file, so no kernel module")]
    NotRelocatable,
    /// Its architecture is another.
    #[error("built for {found}, this machine is {wanted}")]
    WrongMachine {
        /// What the file says.
        found: String,
        /// What the machine is.
        wanted: String,
    },
    /// Its bytes are in the other order.
    #[error("built for a {found} machine, this one is {wanted}")]
    WrongByteOrder {
        /// What the file says.
        found: &'static str,
        /// What the machine is.
        wanted: &'static str,
    },
    /// Bytes that its own table names are missing.
    #[error("cut off: its {what} ends at byte {end}, the file has {length} bytes")]
    CutOff {
        /// The table of sections, or one of them.
        what: String,
        /// Where it should end.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// It has no `.modinfo` section.
    #[error("no section `.modinfo`, so no kernel module")]
    NoModinfo,
}

/// By what the module that a kernel runs is told from another of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// GNU build id, lower-case hexadecimal.
    #[serde(default, rename = "buildID", skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// srcversion; kernels built without it have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srcversion: Option<String>,
}

/// What a comparison of two identities came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sameness {
    /// The same file.
    Same,
    /// Another file.
    Different,
    /// Nothing to compare by.
    Unknown,
}

impl Identity {
    /// Compares by build id if both have one, else by srcversion.
    pub fn compare(&self, other: &Self) -> Sameness {
        let verdict = |same| if same { Sameness::Same } else { Sameness::Different };
        match (&self.build_id, &other.build_id, &self.srcversion, &other.srcversion) {
            (Some(a), Some(b), _, _) => verdict(a.eq_ignore_ascii_case(b)),
            (_, _, Some(a), Some(b)) => verdict(a == b),
            _ => Sameness::Unknown,
        }
    }

    /// For messages: which build this is.
    pub fn describe(&self) -> String {
        match (&self.build_id, &self.srcversion) {
            (Some(id), _) => format!("build id {id}"),
            (None, Some(version)) => format!("srcversion {version}"),
            (None, None) => "without build id and srcversion".to_owned(),
        }
    }
}

/// What the kernel looks at, or needs, when it is handed the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Memory that the module keeps in the kernel, bytes: all sections that are allocated.
    pub memory: u64,
    /// The uncompressed file, bytes; the kernel holds it while it loads.
    pub size: u64,
    /// Its signature, if it has one.
    pub signature: Option<Signature>,
    /// Types of filesystems that it provides.
    pub filesystems: Vec<String>,
}

/// What is read from a module's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFile {
    /// What the module says about itself.
    pub info: Modinfo,
    /// What to find again in the kernel.
    pub identity: Identity,
    /// It carries the versions of the symbols that it uses.
    pub has_symbol_versions: bool,
    /// Symbols that others must provide.
    pub undefined: Vec<String>,
    /// Symbols that it provides to other modules.
    pub exported: Vec<String>,
    /// What the kernel will look at.
    pub facts: FileFacts,
}

/// Bytes of notes that are looked into, of all sections together; a build id takes 36.
const MAX_NOTES: u64 = 64 * 1024;
/// The end of the file in which a signature is looked for.
const MAX_SIGNATURE: u64 = 64 * 1024;

/// Reads an uncompressed module; `machine` is the architecture by Rust's name for it, for instance `x86_64`.
///
/// Of the file only the tables, symbols and texts are read, not what the kernel will execute.
pub fn read<'data>(data: impl ReadRef<'data>, machine: &str) -> Result<ModuleFile, Error> {
    match FileKind::parse(data).map_err(not_elf)? {
        FileKind::Elf64 => read_class::<FileHeader64<Endianness>, _>(data, machine),
        FileKind::Elf32 => read_class::<FileHeader32<Endianness>, _>(data, machine),
        other => Err(Error::NotElf(format!("{other:?}"))),
    }
}

fn not_elf(error: object::Error) -> Error {
    Error::NotElf(error.to_string())
}

fn read_class<'data, H, R>(data: R, machine: &str) -> Result<ModuleFile, Error>
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let length = data.len().map_err(|()| Error::NotElf("it has no length".to_owned()))?;
    let header = H::parse(data).map_err(not_elf)?;
    check_table(header, length)?;
    let endian = header.endian().map_err(not_elf)?;
    if header.e_type(endian) != elf::ET_REL {
        return Err(Error::NotRelocatable);
    }
    check_machine(header.e_machine(endian), header.is_type_64(), machine)?;
    check_byte_order(endian)?;
    let sections = Sections::of(header, endian, data).map_err(not_elf)?;
    let memory = sections.check(length)?;
    let modinfo = sections.named(".modinfo").ok_or(Error::NoModinfo)?;
    let info = modinfo::parse(modinfo.data(endian, data).map_err(not_elf)?);
    let identity = Identity { build_id: sections.build_id(), srcversion: info.srcversion.clone() };
    let has_symbol_versions = ["__versions", "__version_ext_crcs"].iter().any(|name| sections.named(name).is_some());
    let (undefined, exported) = sections.symbols().map_err(not_elf)?;
    let tail = length.min(MAX_SIGNATURE);
    let signature = data.read_bytes_at(length - tail, tail).ok().and_then(signature::appended);
    let facts = FileFacts { memory, size: length, signature, filesystems: info.filesystems.clone() };
    Ok(ModuleFile { info, identity, has_symbol_versions, undefined, exported, facts })
}

/// The table of sections, which stands last, lies within the file: otherwise the rest of it was lost.
fn check_table<H: FileHeader<Endian = Endianness>>(header: &H, length: u64) -> Result<(), Error> {
    let Ok(endian) = header.endian() else { return Ok(()) };
    let offset: u64 = header.e_shoff(endian).into();
    let size = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    let end = offset.saturating_add(size);
    if end <= length { Ok(()) } else { Err(Error::CutOff { what: "table of sections".to_owned(), end, length }) }
}

/// The sections of a file. Tables of texts are taken as wholes: asking for each name would be a read each.
struct Sections<'data, H: FileHeader<Endian = Endianness>, R> {
    endian: Endianness,
    data: R,
    table: &'data [H::SectionHeader],
    names: StringTable<'data, &'data [u8]>,
}

impl<'data, H: FileHeader<Endian = Endianness>, R: ReadRef<'data>> Sections<'data, H, R> {
    fn of(header: &'data H, endian: Endianness, data: R) -> object::Result<Self> {
        let table = header.section_headers(endian, data)?;
        let names = if table.is_empty() {
            StringTable::default()
        } else {
            texts(table.get(header.shstrndx(endian, data)? as usize), endian, data)?
        };
        Ok(Self { endian, data, table, names })
    }

    fn name(&self, section: &H::SectionHeader) -> Option<&'data str> {
        std::str::from_utf8(self.names.get(section.sh_name(self.endian)).ok()?).ok()
    }

    fn named(&self, name: &str) -> Option<&'data H::SectionHeader> {
        self.table.iter().find(|section| self.name(section) == Some(name))
    }

    /// Every section lies within the file. Returns the size of those that stay in memory, bytes.
    fn check(&self, length: u64) -> Result<u64, Error> {
        let (endian, mut memory) = (self.endian, 0u64);
        // The first is none, by the format.
        for (index, section) in self.table.iter().enumerate().skip(1) {
            let size: u64 = section.sh_size(endian).into();
            let offset: u64 = section.sh_offset(endian).into();
            let end = offset.saturating_add(size);
            if section.sh_type(endian) != elf::SHT_NOBITS && end > length {
                let name = self.name(section).filter(|name| !name.is_empty());
                let what = name.map_or_else(|| format!("section {index}"), |name| format!("section {name}"));
                return Err(Error::CutOff { what, end, length });
            }
            let flags: u64 = section.sh_flags(endian).into();
            if flags & u64::from(elf::SHF_ALLOC) != 0 {
                memory = memory.saturating_add(size);
            }
        }
        Ok(memory)
    }

    fn build_id(&self) -> Option<String> {
        let mut left = MAX_NOTES;
        for section in self.table.iter().filter(|section| section.sh_type(self.endian) == elf::SHT_NOTE) {
            // Sections may overlap, and each is a copy of its own.
            let Some(rest) = left.checked_sub(section.sh_size(self.endian).into()) else { continue };
            left = rest;
            let Ok(Some(mut notes)) = section.notes(self.endian, self.data) else { continue };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == elf::ELF_NOTE_GNU && note.n_type(self.endian) == NT_GNU_BUILD_ID {
                    return Some(hex(note.desc()));
                }
            }
        }
        None
    }

    /// Names of symbols that others must provide, and of those that it provides.
    fn symbols(&self) -> object::Result<(Vec<String>, Vec<String>)> {
        let (endian, data) = (self.endian, self.data);
        let (mut undefined, mut exported) = (Vec::new(), Vec::new());
        let Some(section) = self.table.iter().find(|section| section.sh_type(endian) == elf::SHT_SYMTAB) else {
            return Ok((undefined, exported));
        };
        let names = texts(self.table.get(section.sh_link(endian) as usize), endian, data)?;
        // The first is none, by the format.
        for symbol in section.data_as_array::<H::Sym, _>(endian, data)?.iter().skip(1) {
            let Ok(Ok(name)) = names.get(symbol.st_name(endian)).map(std::str::from_utf8) else { continue };
            if let Some(name) = name.strip_prefix("__ksymtab_") {
                exported.push(name.to_owned());
            } else if symbol.is_undefined(endian) && !name.is_empty() {
                undefined.push(name.to_owned());
            }
        }
        Ok((undefined, exported))
    }
}

fn texts<'data, S: SectionHeader<Endian = Endianness>>(
    section: Option<&S>,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> object::Result<StringTable<'data, &'data [u8]>> {
    let bytes = section.map(|section| section.data(endian, data)).transpose()?.unwrap_or_default();
    Ok(StringTable::new(bytes, 0, bytes.len() as u64))
}

/// Kernel and worker are of one byte order.
fn check_byte_order(found: Endianness) -> Result<(), Error> {
    let name = |big| if big { "big-endian" } else { "little-endian" };
    let (found, wanted) = (found == Endianness::Big, cfg!(target_endian = "big"));
    if found == wanted { Ok(()) } else { Err(Error::WrongByteOrder { found: name(found), wanted: name(wanted) }) }
}

fn check_machine(found: u16, is_64: bool, machine: &str) -> Result<(), Error> {
    const KNOWN: [(u16, &str); 9] = [
        (elf::EM_X86_64, "x86_64"),
        (elf::EM_386, "x86"),
        (elf::EM_AARCH64, "aarch64"),
        (elf::EM_ARM, "arm"),
        (elf::EM_PPC64, "powerpc64"),
        (elf::EM_S390, "s390x"),
        (elf::EM_RISCV, "riscv64"),
        (elf::EM_LOONGARCH, "loongarch64"),
        (elf::EM_MIPS, "mips64"),
    ];
    let name = KNOWN.iter().find(|(number, _)| *number == found).map(|(_, name)| *name);
    // An architecture that is not in the list is left to the kernel.
    let known = KNOWN.iter().any(|(_, name)| *name == machine);
    let class_fits = !known || is_64 || !machine.contains("64") && machine != "s390x";
    if !known || (name == Some(machine) && class_fits) {
        return Ok(());
    }
    let bits = if is_64 { 64 } else { 32 };
    let found = name.map_or_else(|| format!("ELF machine {found}, {bits} bit"), |name| format!("{name}, {bits} bit"));
    Err(Error::WrongMachine { found, wanted: machine.to_owned() })
}

/// Build id in the notes of a running module, as `/sys/module/<m>/notes/*` shows them: headers in the machine's byte order.
pub fn build_id_of_notes(mut notes: &[u8]) -> Option<String> {
    let word = |bytes: &[u8], at: usize| -> Option<usize> {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(four)).ok()
    };
    while notes.len() >= 12 {
        let (name_len, desc_len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if notes.get(12..12 + name_len) == Some(b"GNU\0".as_slice()) && kind == 3 {
            return Some(hex(desc));
        }
        notes = notes.get(desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?..)?;
    }
    None
}

#[cfg(test)]
pub(crate) mod testing {
    //! A minimal module file, assembled by hand so that unit tests need no compiler.

    /// An x86-64 relocatable ELF with the given sections (name, type, content).
    pub(crate) fn elf(sections: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut body = Vec::new();
        let mut headers = vec![[0u8; 64]];
        let mut push = |name: &str, kind: u32, content: &[u8], names: &mut Vec<u8>| {
            let mut header = [0u8; 64];
            header[0..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[48..56].copy_from_slice(&4u64.to_le_bytes());
            if kind == SYMBOLS {
                // The names of symbols stand in the section behind them.
                header[40..44].copy_from_slice(&u32::try_from(headers.len() + 1).unwrap().to_le_bytes());
            }
            body.extend_from_slice(content);
            while body.len() % 8 != 0 {
                body.push(0);
            }
            headers.push(header);
        };
        for (name, kind, content) in sections {
            push(name, *kind, content, &mut names);
        }
        let table = {
            let mut all = names.clone();
            all.extend_from_slice(b".shstrtab\0");
            all
        };
        push(".shstrtab", 3, &table, &mut names);
        let mut file = Vec::new();
        file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend_from_slice(&1u16.to_le_bytes());
        file.extend_from_slice(&62u16.to_le_bytes());
        file.extend_from_slice(&1u32.to_le_bytes());
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(&(64 + body.len() as u64).to_le_bytes());
        file.extend_from_slice(&[0; 4]);
        for half in [64u16, 0, 0, 64, u16::try_from(headers.len()).unwrap(), u16::try_from(headers.len() - 1).unwrap()]
        {
            file.extend_from_slice(&half.to_le_bytes());
        }
        assert_eq!(file.len(), 64);
        file[40..48].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
        file.extend_from_slice(&body);
        for header in headers {
            file.extend_from_slice(&header);
        }
        file
    }

    /// A note `GNU`, type build id.
    pub(crate) fn note(id: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4u32, u32::try_from(id.len()).unwrap(), 3] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"GNU\0");
        note.extend_from_slice(id);
        note
    }

    const SYMBOLS: u32 = 2;

    /// A module with this modinfo and build id that provides symbols, and needs some.
    pub(crate) fn module_with(modinfo: &str, id: &[u8], provides: &[&str], needs: &[&str]) -> Vec<u8> {
        let (mut symbols, mut names) = (vec![0u8; 24], vec![0u8]);
        let provides = provides.iter().map(|name| (format!("__ksymtab_{name}"), 1u16));
        for (name, section) in provides.chain(needs.iter().map(|name| ((*name).to_owned(), 0))) {
            symbols.extend_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            symbols.extend_from_slice(&[0x10, 0]);
            symbols.extend_from_slice(&section.to_le_bytes());
            symbols.extend_from_slice(&[0; 16]);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        elf(&[
            (".modinfo", 1, modinfo.as_bytes()),
            (".note.gnu.build-id", 7, &note(id)),
            (".symtab", SYMBOLS, &symbols),
            (".strtab", 3, &names),
        ])
    }

    /// A module with this modinfo and build id.
    pub(crate) fn module(modinfo: &str, id: &[u8]) -> Vec<u8> {
        elf(&[(".modinfo", 1, modinfo.as_bytes()), (".note.gnu.build-id", 7, &note(id))])
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{elf, module, note};
    use super::*;

    #[test]
    fn a_module_tells_identity_and_modinfo() {
        let file =
            read(module("name=kmm_a\0srcversion=S1\0depends=b\0", &[0xab, 1, 2, 0xff]).as_slice(), "x86_64").unwrap();
        assert_eq!(file.identity, Identity { build_id: Some("ab0102ff".into()), srcversion: Some("S1".into()) });
        assert_eq!(file.info.name.as_deref(), Some("kmm_a"));
        assert_eq!(file.info.depends, ["b"]);
        assert!(!file.has_symbol_versions);
        let versioned = elf(&[(".modinfo", 1, b"name=a\0"), ("__versions", 1, &[0; 64])]);
        assert!(read(versioned.as_slice(), "x86_64").unwrap().has_symbol_versions);
    }

    #[test]
    fn what_is_no_module_for_this_machine_is_refused_in_words() {
        let mut program = module("name=a\0", &[1]);
        program[16] = 2;
        // The size of the first section, `.modinfo`, in its header; the headers stand last.
        let mut long = module("name=a\0", &[1]);
        let header = long.len() - 3 * 64;
        long[header + 32..header + 40].copy_from_slice(&100_000u64.to_le_bytes());
        let cut = format!("cut off: its section .modinfo ends at byte 100064, the file has {} bytes", long.len());
        let whole = module("name=a\0", &[1]);
        let half = whole[..whole.len() / 2].to_vec();
        let lost =
            format!("cut off: its table of sections ends at byte {}, the file has {} bytes", whole.len(), half.len());
        let mut small = module("name=a\0", &[1]);
        small[18..20].copy_from_slice(&3u16.to_le_bytes());
        for (data, machine, expected) in [
            (b"".to_vec(), "x86_64", "not an ELF file: Could not read file magic"),
            (b"#!/bin/sh\nexit 0 and more".to_vec(), "x86_64", "not an ELF file: Unknown file magic"),
            (program, "x86_64", "not a relocatable ELF file, so no kernel module"),
            (elf(&[]), "x86_64", "no section `.modinfo`, so no kernel module"),
            (module("name=a\0", &[1]), "aarch64", "built for x86_64, 64 bit, this machine is aarch64"),
            (small, "x86_64", "built for x86, 64 bit, this machine is x86_64"),
            (long, "x86_64", cut.as_str()),
            (half, "x86_64", lost.as_str()),
        ] {
            assert_eq!(read(data.as_slice(), machine).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_file_that_is_cut_or_bent_anywhere_never_panics() {
        let whole = module("name=kmm_a\0depends=b,c\0", &[1, 2, 3, 4]);
        for length in 0..whole.len() {
            let _ = read(&whole[..length], "x86_64");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0xff;
            let _ = read(bent.as_slice(), "x86_64");
        }
    }

    #[test]
    fn many_or_long_notes_do_not_fill_the_memory_and_hide_no_build_id_before_them() {
        let (id, long) = (note(&[7]), vec![0u8; usize::try_from(MAX_NOTES).unwrap()]);
        let info: (&str, u32, &[u8]) = (".modinfo", 1, b"name=a\0");
        let build_id = |notes: &[&[u8]]| {
            let sections: Vec<_> = std::iter::once(info).chain(notes.iter().map(|note| (".note", 7, *note))).collect();
            read(elf(&sections).as_slice(), "x86_64").unwrap().identity.build_id
        };
        assert_eq!(build_id(&[&id, &long]), Some("07".into()));
        assert_eq!(build_id(&[&long, &id]), None);
    }

    #[test]
    fn notes_of_a_running_module_give_its_build_id() {
        let mut other = Vec::new();
        for word in [4u32, 2, 1] {
            other.extend_from_slice(&word.to_ne_bytes());
        }
        other.extend_from_slice(b"Xen\0\x01\x02\0\0");
        let mut both = other.clone();
        both.extend_from_slice(&note(&[0xde, 0xad]));
        assert_eq!(build_id_of_notes(&both), Some("dead".into()));
        assert_eq!(build_id_of_notes(&other), None);
        for length in 0..both.len() {
            let _ = build_id_of_notes(&both[..length]);
        }
        assert_eq!(build_id_of_notes(&[0xff; 40]), None);
    }

    #[test]
    fn identities_are_compared_by_build_id_then_by_srcversion() {
        let id = |build: Option<&str>, src: Option<&str>| Identity {
            build_id: build.map(ToOwned::to_owned),
            srcversion: src.map(ToOwned::to_owned),
        };
        for (a, b, expected) in [
            (id(Some("ab"), Some("1")), id(Some("AB"), Some("2")), Sameness::Same),
            (id(Some("ab"), Some("1")), id(Some("cd"), Some("1")), Sameness::Different),
            (id(None, Some("1")), id(Some("cd"), Some("1")), Sameness::Same),
            (id(None, Some("1")), id(None, Some("2")), Sameness::Different),
            (id(Some("ab"), None), id(None, Some("2")), Sameness::Unknown),
            (id(None, None), id(None, None), Sameness::Unknown),
        ] {
            assert_eq!(a.compare(&b), expected, "{a:?} {b:?}");
        }
    }
}
