use std::path::PathBuf;

use super::Item::{File, Folder, Hard, Link, Other};
use super::*;
use crate::oci::error::PullError;
use crate::oci::limits::{Keep, Limits, Skipped};
use crate::oci::progress::Progress;
use crate::oci::unpack::layer::Unpacked;
use crate::oci::unpack::{Arriving, unpack};

fn keep() -> Keep {
    Keep::new("/opt", &["6.1"], Some("/firmware"))
}

fn unpack_bytes(layers: &[Vec<u8>], keep: &Keep, limits: &Limits) -> (tempfile::TempDir, Result<Unpacked, PullError>) {
    let folder = tempfile::tempdir().unwrap();
    let mut arriving = arrived(layers);
    let unpacked = unpack(&mut arriving.0, &folder.path().join("out"), keep, limits, &Progress::default());
    (folder, unpacked)
}

/// Layers that are all there, and the folder that holds them.
fn arrived(layers: &[Vec<u8>]) -> (Arriving, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (send, coming) = tokio::sync::mpsc::channel(layers.len().max(1));
    for (number, layer) in layers.iter().enumerate() {
        let file: PathBuf = folder.path().join(number.to_string());
        std::fs::write(&file, layer).unwrap();
        send.try_send(file).unwrap();
    }
    (Arriving::new(coming, layers.len()), folder)
}

/// What is written for layers of these entries, or the error in words.
fn written_with(keep: &Keep, layers: &[&[Item<'_>]]) -> Result<Vec<(String, String)>, String> {
    let layers: Vec<_> = layers.iter().map(|items| layer(items)).collect();
    let (folder, unpacked) = unpack_bytes(&layers, keep, &Limits::default());
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(left <= 1, "something was written elsewhere");
    unpacked.map(|_| listing(&folder.path().join("out"))).map_err(|error| error.to_string())
}

fn written(layers: &[&[Item<'_>]]) -> Result<Vec<(String, String)>, String> {
    written_with(&keep(), layers)
}

fn paths(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

const KO: &str = "opt/lib/modules/6.1/a.ko";

#[test]
fn only_what_is_wanted_is_written() {
    let items = [
        Folder("./"),
        Folder("opt/"),
        Folder("opt/lib/modules/6.1/"),
        File("opt/lib/modules/6.1/a.ko", "a"),
        File("./opt/lib/modules/6.1/extra/b.ko", "b"),
        File("/firmware/vendor/blob.bin", "fw"),
        File("opt/lib/modules/6.10/a.ko", "other kernel"),
        File("etc/passwd", "root"),
        Other("dev/null", tar::EntryType::Char),
        Other("run/pipe", tar::EntryType::Fifo),
    ];
    let expected = [
        ("firmware/vendor/blob.bin", "fw"),
        ("opt/lib/modules/6.1/a.ko", "a"),
        ("opt/lib/modules/6.1/extra/b.ko", "b"),
    ];
    assert_eq!(written(&[&items]), Ok(paths(&expected)));
}

#[test]
fn every_compression_is_read_and_several_streams_are_one_layer() {
    let plain = layer(&[File(KO, "content"), File("opt/lib/modules/6.1/b.ko", "more")]);
    let (first, second) = plain.split_at(700);
    let streams = [gzip(first), gzip(second)].concat();
    let frames = [zstd::encode_all(first, 3).unwrap(), zstd::encode_all(second, 3).unwrap()].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &frames].concat();
    for bytes in [plain.clone(), gzip(&plain), streams, frames, skippable] {
        let (folder, unpacked) = unpack_bytes(&[bytes], &keep(), &Limits::default());
        let Unpacked { files, bytes, skipped } = unpacked.unwrap();
        assert_eq!((files, bytes, skipped), (2, 11, vec![]));
        let expected = paths(&[(KO, "content"), ("opt/lib/modules/6.1/b.ko", "more")]);
        assert_eq!(listing(&folder.path().join("out")), expected);
    }
}

/// What the upper layer does, its entries, and what is there in the end.
type Case<'a> = (&'a str, Vec<Item<'a>>, Vec<(&'a str, &'a str)>);

#[test]
fn upper_layers_replace_and_hide_what_lower_ones_hold() {
    let base: &[Item<'_>] = &[File(KO, "old"), File("opt/lib/modules/6.1/sub/b.ko", "b"), File("firmware/f", "f")];
    let rest = [("firmware/f", "f"), ("opt/lib/modules/6.1/sub/b.ko", "b")];
    let cases: Vec<Case<'_>> = vec![
        ("replaced", vec![File(KO, "new")], vec![rest[0], (KO, "new"), rest[1]]),
        ("hidden", vec![File("opt/lib/modules/6.1/.wh.a.ko", "")], rest.to_vec()),
        (
            "hidden and new, in either order",
            vec![File(KO, "new"), File("opt/lib/modules/6.1/.wh.a.ko", "")],
            vec![rest[0], (KO, "new"), rest[1]],
        ),
        ("folder hidden", vec![File("opt/lib/modules/6.1/.wh.sub", "")], vec![rest[0], (KO, "old")]),
        ("folder far above hidden", vec![File(".wh.opt", "")], vec![rest[0], ("opt/lib/modules/", "")]),
        (
            "opaque, before and after the new content",
            vec![File("opt/lib/modules/6.1/sub/c.ko", "c"), File("opt/lib/modules/6.1/.wh..wh..opq", "")],
            vec![rest[0], ("opt/lib/modules/6.1/sub/c.ko", "c")],
        ),
        ("opaque far above", vec![File("opt/.wh..wh..opq", "")], vec![rest[0], ("opt/lib/modules/6.1/", "")]),
        ("folder instead of a file", vec![Folder(KO)], vec![rest[0], ("opt/lib/modules/6.1/a.ko/", ""), rest[1]]),
        (
            "file instead of a folder",
            vec![File("opt/lib/modules/6.1/sub", "s")],
            vec![rest[0], (KO, "old"), ("opt/lib/modules/6.1/sub", "s")],
        ),
        ("file instead of a folder far above", vec![File("opt", "")], vec![rest[0], ("opt/lib/modules/", "")]),
        ("bookkeeping of an old driver", vec![Folder(".wh..wh.plnk/")], vec![rest[0], (KO, "old"), rest[1]]),
        ("something else hidden", vec![File("etc/.wh.passwd", "")], vec![rest[0], (KO, "old"), rest[1]]),
        ("nothing there to hide", vec![File("opt/lib/modules/6.1/x/y/.wh.z", "")], vec![rest[0], (KO, "old"), rest[1]]),
    ];
    for (name, upper, expected) in cases {
        assert_eq!(written(&[base, &upper]), Ok(paths(&expected)), "{name}");
    }
}

#[test]
fn links_inside_the_tree_are_kept_and_others_listed() {
    let layers = [layer(&[
        File(KO, "a"),
        Link("opt/lib/modules/6.1/same.ko", "a.ko"),
        Link("opt/lib/modules/6.1/absolute.ko", "/opt/lib/modules/6.1/a.ko"),
        Link("opt/lib/modules/6.1/sub/up.ko", "../a.ko"),
        Link("opt/lib/modules/6.1/self", "."),
        Link("firmware/across", "../opt/lib/modules/6.1/a.ko"),
        Link("firmware/dangling", "nothing"),
        Hard("opt/lib/modules/6.1/hard.ko", "opt/lib/modules/6.1/a.ko"),
        Hard("opt/lib/modules/6.1/rooted.ko", "/opt/lib/modules/6.1/a.ko"),
        Link("opt/lib/modules/6.1/host", "/host/lib/modules/6.1"),
        Link("opt/lib/modules/6.1/escape", "../../../../../../etc/passwd"),
        Link("opt/lib/modules/6.1/build", "/usr/src/linux"),
    ])];
    let (folder, unpacked) = unpack_bytes(&layers, &keep(), &Limits::default());
    let expected = [
        ("firmware/across", "-> ../opt/lib/modules/6.1/a.ko"),
        ("firmware/dangling", "-> nothing"),
        (KO, "a"),
        ("opt/lib/modules/6.1/absolute.ko", "-> a.ko"),
        ("opt/lib/modules/6.1/hard.ko", "a"),
        ("opt/lib/modules/6.1/rooted.ko", "a"),
        ("opt/lib/modules/6.1/same.ko", "-> a.ko"),
        ("opt/lib/modules/6.1/self", "-> ."),
        ("opt/lib/modules/6.1/sub/up.ko", "-> ../a.ko"),
    ];
    assert_eq!(listing(&folder.path().join("out")), paths(&expected));
    let skipped = |name: &str, target: &str| Skipped {
        path: format!("opt/lib/modules/6.1/{name}").into(),
        why: format!("symbolic link to {target}, which is not kept"),
    };
    assert_eq!(
        unpacked.unwrap().skipped,
        [
            skipped("host", "/host/lib/modules/6.1"),
            skipped("escape", "../../../../../../etc/passwd"),
            skipped("build", "/usr/src/linux"),
        ]
    );
}

#[test]
fn links_above_the_wanted_paths_are_followed_wherever_they_are() {
    let keep = Keep::new("/", &["6.1", "6.1+"], Some("/lib/firmware"));
    let content: &[Item<'_>] = &[File("usr/lib/modules/6.1/a.ko", "a"), File("usr/lib/firmware/f", "f")];
    let expected = Ok(paths(&[("lib/firmware/f", "f"), ("lib/modules/6.1/a.ko", "a"), ("lib/modules/6.1+", "-> 6.1")]));
    let alias = Link("usr/lib/modules/6.1+", "6.1");
    let alias_of = |target| [Link("lib", target)];
    assert_eq!(written_with(&keep, &[&alias_of("usr/lib"), content, &[alias]]), expected);
    let alias = Link("usr/lib/modules/6.1+", "/lib/modules/6.1");
    assert_eq!(written_with(&keep, &[content, &[alias], &alias_of("/usr/lib")]), expected, "link above the content");
    let hidden = written_with(&keep, &[&alias_of("usr/lib"), content, &[File(".wh.lib", "")]]);
    assert_eq!(hidden, Ok(vec![]), "the link is hidden again");
    let error = written_with(&keep, &[&[Link("lib", "lib2"), Link("lib2", "lib")]]).unwrap_err();
    assert!(error.contains("too many symbolic links"), "{error}");
}

#[test]
fn unsafe_images_are_refused_with_the_path() {
    let cases: Vec<(Vec<Item<'_>>, &str)> = vec![
        (vec![File("../evil", "x")], "../evil: its name leads upwards"),
        (vec![File("etc/../../evil", "x")], "etc/../../evil: its name leads upwards"),
        (vec![File("/../evil", "x")], "/../evil: its name leads upwards"),
        (vec![Hard(KO, "../evil")], "../evil: its name leads upwards"),
        (
            vec![File("etc/null", ""), Other("etc/null", tar::EntryType::Char), Hard(KO, "etc/null")],
            "etc/null: it is a device",
        ),
        (vec![Other(KO, tar::EntryType::Char)], "opt/lib/modules/6.1/a.ko: it is a device"),
        (vec![Other(KO, tar::EntryType::Block)], "opt/lib/modules/6.1/a.ko: it is a device"),
        (vec![Other(KO, tar::EntryType::Fifo)], "opt/lib/modules/6.1/a.ko: it is a pipe"),
        (
            vec![Other(KO, tar::EntryType::new(b'Z'))],
            "opt/lib/modules/6.1/a.ko: it is of a kind that has no place in an image",
        ),
        (vec![File("opt/.wh...", "")], "opt/.wh...: it hides a path that has no name"),
        (
            vec![Link("opt/lib/modules/6.1/sub", "."), File("opt/lib/modules/6.1/sub/a.ko", "x")],
            "opt/lib/modules/6.1/sub/a.ko: it lies below opt/lib/modules/6.1/sub, which is no folder",
        ),
        (vec![Link("opt/lib/modules/6.1/sub", "/"), File("opt/lib/modules/6.1/sub/etc/x", "x")], ""),
    ];
    for (items, expected) in cases {
        match written(&[&items]) {
            Err(error) => assert_eq!(error, format!("the image cannot be unpacked: {expected}")),
            // The link was left out, so its name is free for a folder: nothing leaves the tree.
            Ok(files) => {
                assert_eq!(expected, "");
                assert_eq!(files, paths(&[("opt/lib/modules/6.1/sub/etc/x", "x")]));
            }
        }
    }
    let below_a_link: [&[Item<'_>]; 2] =
        [&[Link("opt/lib/modules/6.1/sub", ".")], &[File("opt/lib/modules/6.1/sub/a.ko", "x")]];
    assert!(written(&below_a_link).unwrap_err().contains("which is no folder"));
}

/// What the link is, all layers, and what is there in the end.
type Linked<'a> = (&'a str, Vec<Vec<Item<'a>>>, Vec<(&'a str, &'a str)>);

#[test]
fn a_hard_link_shows_what_its_target_held_when_it_was_made() {
    const B: &str = "opt/lib/modules/6.1/b.ko";
    let object = File("sysroot/objects/1", "object");
    let cases: Vec<Linked<'_>> = vec![
        ("of a file elsewhere", vec![vec![object, Hard(KO, "sysroot/objects/1")]], vec![(KO, "object")]),
        (
            "of a file in a lower layer, named from the root",
            vec![vec![File("etc/x", "x")], vec![Hard(KO, "/etc/x")]],
            vec![(KO, "x")],
        ),
        (
            "removed later, alone or with all above it",
            vec![
                vec![File("etc/x", "x"), File("var/y", "y"), File("srv/z", "z")],
                vec![Hard(KO, "etc/x"), Hard(B, "var/y"), Hard("firmware/z", "srv/z")],
                vec![File("etc/.wh.x", ""), File(".wh.var", ""), File("srv/.wh..wh..opq", "")],
            ],
            vec![("firmware/z", "z"), (KO, "x"), (B, "y")],
        ),
        (
            "replaced later",
            vec![vec![File("etc/x", "old"), Hard(KO, "etc/x")], vec![File("etc/x", "new"), Hard(B, "etc/x")]],
            vec![(KO, "old"), (B, "new")],
        ),
        (
            "in place of another file",
            vec![vec![File(KO, "old")], vec![File("x", "new"), Hard(KO, "x")]],
            vec![(KO, "new")],
        ),
        (
            "in place of the other name",
            vec![vec![File(KO, "a"), Hard(B, KO)], vec![File("x", "new"), Hard(KO, "x")]],
            vec![(KO, "new"), (B, "a")],
        ),
        (
            "in place of a folder",
            vec![vec![File("firmware/d/f", "f"), File("x", "x")], vec![Hard("firmware/d", "x")]],
            vec![("firmware/d", "x")],
        ),
        (
            "of a name that is a hard link itself",
            vec![vec![File("a", "a"), Hard("b", "a"), Hard("c", "b"), Hard(KO, "c")], vec![File(".wh.a", "")]],
            vec![(KO, "a")],
        ),
        (
            "through links above the target",
            vec![vec![File("usr/share/x", "x"), Link("share", "/usr/share"), Hard(KO, "share/x")]],
            vec![(KO, "x")],
        ),
        (
            "of a symbolic link, read from its new place",
            vec![vec![
                File(KO, "a"),
                Link("firmware/l", "../opt/lib/modules/6.1/a.ko"),
                Hard("firmware/m", "firmware/l"),
                Link("etc/l", "a.ko"),
                Hard(B, "etc/l"),
                Link("etc/out", "/etc/passwd"),
                Hard("opt/lib/modules/6.1/c.ko", "etc/out"),
            ]],
            vec![
                ("firmware/l", "-> ../opt/lib/modules/6.1/a.ko"),
                ("firmware/m", "-> ../opt/lib/modules/6.1/a.ko"),
                (KO, "a"),
                (B, "-> a.ko"),
            ],
        ),
        (
            "that hides, though it is a link itself",
            vec![
                vec![File(KO, "a"), File(B, "b"), File("x", "x")],
                vec![Hard("opt/lib/modules/6.1/.wh.a.ko", "x"), Link("opt/lib/modules/6.1/.wh.b.ko", "/")],
            ],
            vec![("opt/lib/modules/6.1/", "")],
        ),
        (
            "of what is kept under another name of its folder",
            vec![vec![Link("alias", "opt"), File(KO, "a"), Hard(B, "alias/lib/modules/6.1/a.ko")]],
            vec![(KO, "a"), (B, "a")],
        ),
    ];
    for (what, layers, expected) in cases {
        let layers: Vec<&[Item<'_>]> = layers.iter().map(Vec::as_slice).collect();
        assert_eq!(written(&layers), Ok(paths(&expected)), "a hard link {what}");
    }
}

#[test]
fn a_hard_link_to_what_is_no_file_then_is_refused_for_good() {
    let folder = || vec![Folder("etc/"), File("etc/x", "x"), File("opt/lib/modules/6.1/d/f", "f")];
    for (link, target) in [
        (KO, KO),
        (KO, "nowhere"),
        (KO, "etc"),
        (KO, "opt/lib/modules/6.1/d"),
        ("opt/lib/modules/6.1/d", "opt/lib/modules/6.1/d/f"),
        ("opt/lib/modules/6.1/d/f/g", "opt/lib/modules/6.1/d/f"),
    ] {
        let (_folder, unpacked) =
            unpack_bytes(&[layer(&folder()), layer(&[Hard(link, target)])], &keep(), &Limits::default());
        let error = unpacked.unwrap_err();
        let expected = format!("the image cannot be read: {link} is a hard link to {target}, where no file is");
        assert_eq!((error.to_string(), error.is_permanent()), (expected, true));
    }
    // Made after the link, as no container runtime accepts it.
    assert!(written(&[&[Hard(KO, "x"), File("x", "x")]]).unwrap_err().contains("where no file is"));
    let chain: Vec<String> = (0..20).map(|number| format!("x{number}")).collect();
    let mut chained = vec![File("x0", "x")];
    chained.extend(chain.windows(2).map(|two| Hard(&two[1], &two[0])));
    chained.push(Hard(KO, "x19"));
    assert!(written(&[&chained]).unwrap_err().contains("too many links"));
}

#[test]
fn few_and_many_files_are_all_written_and_counted() {
    for count in [3, 300] {
        let names: Vec<String> = (0..count).map(|number| format!("firmware/d{}/{number}", number % 7)).collect();
        let items: Vec<Item<'_>> = names.iter().map(|name| File(name, "12345")).collect();
        let (_folder, unpacked) = unpack_bytes(&[layer(&items)], &keep(), &Limits::default());
        let unpacked = unpacked.unwrap();
        assert_eq!((unpacked.files, unpacked.bytes), (count, count * 5));
    }
}

#[test]
fn whiteouts_do_not_reach_through_links() {
    let base: &[Item<'_>] = &[File("opt/lib/modules/6.1/real/a.ko", "a"), Link("opt/lib/modules/6.1/link", "real")];
    let expected = Ok(paths(&[("opt/lib/modules/6.1/link", "-> real"), ("opt/lib/modules/6.1/real/a.ko", "a")]));
    assert_eq!(written(&[base, &[File("opt/lib/modules/6.1/link/.wh.a.ko", "")]]), expected);
    assert_eq!(written(&[base, &[File("opt/lib/modules/6.1/link/.wh..wh..opq", "")]]), expected);
}

#[test]
fn file_modes_of_the_image_do_not_matter() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, unpacked) = unpack_bytes(&[layer(&[File(KO, "a")])], &keep(), &Limits::default());
    unpacked.unwrap();
    let mode = std::fs::metadata(folder.path().join("out").join(KO)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7133, 0, "{mode:o}");
}

#[test]
fn every_limit_holds() {
    let small = Limits {
        layers: 9,
        fetched_bytes: 9,
        unpacked_bytes: 20_000,
        kept_bytes: 100,
        file_bytes: 60,
        entries: 4,
        progress_bytes: 1,
        path_bytes: 40,
        disk_bytes: 99,
    };
    let ok: &[Item<'_>] = &[File(KO, "a")];
    assert_eq!(limit_reached(ok, &small), None);
    let sixty = "x".repeat(60);
    let many: Vec<String> = (0..5).map(|number| format!("firmware/{number}")).collect();
    let many: Vec<Item<'_>> = many.iter().map(|path| File(path, "")).collect();
    let sum = [File("firmware/1", &sixty), File("firmware/2", &sixty)];
    let long = format!("firmware/{}", "x".repeat(40));
    let large = "x".repeat(20_000);
    let cases: [(&[Item<'_>], &str); 5] = [
        (&[File(KO, &"x".repeat(61))], "bytes in one file"),
        (&sum, "bytes to keep"),
        (&many, "files and folders to keep"),
        (&[File(&long, "")], "bytes in one path"),
        (&[File("etc/unwanted", &large), File(KO, "")], "bytes in all layers"),
    ];
    for (items, expected) in cases {
        assert_eq!(limit_reached(items, &small), Some(expected));
    }
    let deep = format!("f{}", "/x".repeat(49));
    let shallow = Keep::new("/", &[""; 0], Some("/f"));
    let (_folder, unpacked) = unpack_bytes(&[layer(&[File(&deep, "")])], &shallow, &Limits::default());
    assert_eq!(unpacked.unwrap().files, 1);
    let deeper = with_long_name(&format!("f{}", "/x".repeat(64)));
    let (_folder, unpacked) = unpack_bytes(&[deeper], &shallow, &Limits::default());
    assert_eq!(unpacked.unwrap_err().to_string(), "the image is too large: more than 64 folders above one file");
}

#[test]
fn a_disk_without_room_is_told_with_both_figures() {
    let limits = Limits { disk_bytes: 9, ..Limits::default() };
    let (folder, unpacked) =
        unpack_bytes(&[layer(&[File(KO, "12345"), File("firmware/f", "67890")])], &keep(), &limits);
    let expected = format!(
        "the image needs 10 bytes at least, and there is room for 9 in {}, beside a reserve that stays free; make room there",
        folder.path().join("out").display()
    );
    let error = unpacked.unwrap_err();
    assert_eq!((error.reason(), error.to_string()), (NodeReason::StoreFull, expected));
}

fn with_long_name(path: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, path, &b"x"[..]).unwrap();
    builder.into_inner().unwrap()
}

fn limit_reached(items: &[Item<'_>], limits: &Limits) -> Option<&'static str> {
    match unpack_bytes(&[gzip(&layer(items))], &keep(), limits).1 {
        Ok(_) => None,
        Err(PullError::ImageTooLarge { what, .. }) => Some(what),
        Err(error) => panic!("{error}"),
    }
}

/// An entry whose header tells a size and whose content is zeros.
fn claiming(kind: tar::EntryType, path: &str, size: u64, zeros: usize) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.resize(archive.len() + zeros, 0);
    archive
}

#[test]
fn bombs_do_not_go_off() {
    let long_name = claiming(tar::EntryType::GNULongName, "././@LongLink", 2 << 20, 2 << 20);
    let attributes = claiming(tar::EntryType::XHeader, "pax", 2 << 20, 2 << 20);
    for bomb in [long_name, attributes] {
        let error = unpack_bytes(&[gzip(&bomb)], &keep(), &Limits::default()).1.unwrap_err();
        assert_eq!(error.to_string(), "the image is too large: more than 1048576 bytes in one header");
    }
    for size in [1 << 40, u64::MAX / 2, u64::MAX] {
        let claimed = claiming(tar::EntryType::Regular, KO, size, 512);
        let error = unpack_bytes(&[claimed], &keep(), &Limits::default()).1.unwrap_err();
        assert!(matches!(error.reason(), NodeReason::ImageTooLarge | NodeReason::ImageInvalidResponse), "{error}");
        let unwanted = claiming(tar::EntryType::Regular, "etc/x", size, 512);
        let error = unpack_bytes(&[unwanted], &keep(), &Limits::default()).1.err();
        assert!(error.is_none_or(|error| error.reason() == NodeReason::ImageInvalidResponse));
    }
}

#[test]
fn what_is_no_archive_is_told() {
    let truncated = layer(&[File(KO, "content")])[..512].to_vec();
    let garbage = vec![b'x'; 2048];
    let broken_gzip = gzip(&layer(&[File(KO, "content")]))[..40].to_vec();
    for bytes in [truncated, garbage, broken_gzip] {
        let error = unpack_bytes(&[bytes], &keep(), &Limits::default()).1.unwrap_err();
        assert!(matches!(error, PullError::InvalidImage { .. }) && error.is_permanent(), "{error}");
    }
    let (folder, empty) = unpack_bytes(&[vec![], layer(&[])], &keep(), &Limits::default());
    assert_eq!(empty.unwrap().files, 0);
    assert_eq!(listing(&folder.path().join("out")), []);
}

#[test]
fn a_disk_that_gives_no_layer_back_says_nothing_about_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (send, coming) = tokio::sync::mpsc::channel(1);
    // A folder can be opened like a file and not read.
    send.try_send(folder.path().to_owned()).unwrap();
    let out = folder.path().join("out");
    let error = unpack(&mut Arriving::new(coming, 1), &out, &keep(), &Limits::default(), &Progress::default());
    let error = error.unwrap_err();
    assert_eq!((error.reason(), error.is_permanent()), (NodeReason::StoreFailed, false), "{error}");
}

#[test]
fn unpacking_ends_when_nobody_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut arriving = arrived(&[layer(&[File(KO, "a")])]);
    let out = folder.path().join("out");
    let progress = Progress::default();
    progress.cancel();
    let error = unpack(&mut arriving.0, &out, &keep(), &Limits::default(), &progress).unwrap_err();
    assert!(matches!(error, PullError::Cancelled));
    // The other side has gone before all layers came.
    let (send, coming) = tokio::sync::mpsc::channel(1);
    drop(send);
    let missing = folder.path().join("missing");
    let error = unpack(&mut Arriving::new(coming, 1), &missing, &keep(), &Limits::default(), &Progress::default());
    assert!(matches!(error.unwrap_err(), PullError::Cancelled));
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let path = format!("firmware/{}/{}", "d".repeat(90), "f".repeat(90));
    let gnu = with_long_name(&path);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", path.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    builder.append_data(&mut header, "short", &b"x"[..]).unwrap();
    let pax = builder.into_inner().unwrap();
    for archive in [gnu, pax] {
        let (folder, unpacked) = unpack_bytes(&[archive], &keep(), &Limits::default());
        unpacked.unwrap();
        assert_eq!(listing(&folder.path().join("out")), paths(&[(&path, "x")]));
    }
}
