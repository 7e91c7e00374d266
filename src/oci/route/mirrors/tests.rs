use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// An authority that signed nothing.
const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBUjCB+qADAgECAhQOW87LvYZd+VZp8YIGUKEcduG4UzAKBggqhkjOPQQDAjAP
MQ0wCwYDVQQDDAR0ZXN0MCAXDTI2MTEyNjEwNTcwOVoYDzIxMjYxMTAyMTA1NzA5
WjAPMQ0wCwYDVQQDDAR0ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEpWZy
wdIyZL04e1ziLA+QvCIhMvgdpFObTZcmmQqBoMJBlyp83sb2f+MwOIsVGoJaqsG4
WH4eryLe45W+QVUTkKMyMDAwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUyEyT
59eIKAhqoGwsoK0fztM2G7cwCgYIKoZIzj0EAwIDRwAwRAIgfuwfsry5ZTjQau6n
/5aY8j0fyW3JNDpx+TzxPjKg2AACIDD6uE6UH/FPiwkOhsVNyUOfCINd3OE3vpQ/
Vr4kqfKB
-----END CERTIFICATE-----
";

/// A node's `/etc` with these files; content `@CA` is a certificate, and `-> ` makes a link.
fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
    let etc = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = etc.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, content.replace("@CA", CA)).unwrap(),
        }
    }
    etc
}

const CONTAINERD: Option<&str> = Some("containerd://2.1.4");
const CRI_O: Option<&str> = Some("cri-o://1.34.0");
const STRICT: RegistryOptions = RegistryOptions { insecure: false, insecure_skip_tls_verify: false };
const LAX: RegistryOptions = RegistryOptions { insecure: true, insecure_skip_tls_verify: true };

fn found(etc: &Path, runtime: Option<&str>, image: &str, options: RegistryOptions) -> Result<Endpoints, Error> {
    let digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    endpoints(&format!("{image}@{digest}").parse().unwrap(), options, runtime, etc)
}

/// Each endpoint in a line: scheme, address, what it is told, whom it trusts, whose credentials it gets.
fn told(endpoint: &Endpoint) -> String {
    let Endpoint { host, scheme, root, repository, namespace, credentials_of, tls, is_origin, .. } = endpoint;
    let part = |there: bool, text: String| if there { text } else { String::new() };
    [
        format!("{scheme:?} {host}{root}/{repository}"),
        namespace.as_ref().map(|namespace| format!(" ns={namespace}")).unwrap_or_default(),
        part(tls.skip_verify, " unverified".to_owned()),
        part(!tls.authorities.is_empty(), format!(" ca={}", tls.authorities.len())),
        part(!is_origin, " mirror".to_owned()),
        part(*credentials_of != format!("{host}/{repository}"), format!(" credentials={credentials_of}")),
    ]
    .concat()
}

fn lines(files: &[(&str, &str)], runtime: Option<&str>, image: &str, options: RegistryOptions) -> Vec<String> {
    let etc = etc(files);
    let found = found(etc.path(), runtime, image, options).unwrap();
    assert_eq!(found.notes, [""; 0], "{image}");
    found.list.iter().map(told).collect()
}

#[test]
fn without_files_or_a_known_runtime_the_registry_itself_is_asked() {
    let mirror = [("containerd/certs.d/quay.io/hosts.toml", "[host.\"https://m\"]")];
    for (files, runtime) in [
        (&[][..], CONTAINERD),
        (&[], CRI_O),
        (&mirror, None),
        (&mirror, CRI_O),
        (&mirror, Some("docker://27.0")),
        (&mirror, Some("")),
    ] {
        assert_eq!(lines(files, runtime, "quay.io/a/b", STRICT), ["Https quay.io/v2/a/b"], "{runtime:?}");
        assert_eq!(lines(files, runtime, "quay.io/a/b", LAX), ["Either quay.io/v2/a/b unverified"], "{runtime:?}");
    }
    let hub = "Https registry-1.docker.io/v2/library/a credentials=docker.io/library/a";
    for runtime in [CONTAINERD, CRI_O, None] {
        assert_eq!(lines(&[], runtime, "a", STRICT), [hub]);
    }
    let missing = found(Path::new("/nowhere/etc"), CONTAINERD, "quay.io/a/b", STRICT).unwrap();
    assert_eq!(missing.list.iter().map(told).collect::<Vec<_>>(), ["Https quay.io/v2/a/b"]);
}

#[test]
fn containerd_asks_the_hosts_of_the_file_and_then_the_server() {
    let hosts = r#"
        [host."https://z.example.com"]
          ca = "z.pem"
        [host."http://a.example.com:5000/some/path"]
        [host."http://tls.example.com:5001"]
          skip_verify = false
        [host."https://push.example.com"]
          capabilities = ["push"]
    "#;
    let files = [("containerd/certs.d/quay.io/hosts.toml", hosts), ("containerd/certs.d/quay.io/z.pem", "@CA\n@CA")];
    let expected = [
        "Https z.example.com/v2/a/b ns=quay.io ca=2 mirror",
        "Http a.example.com:5000/some/path/v2/a/b ns=quay.io mirror",
        "Either tls.example.com:5001/v2/a/b ns=quay.io mirror",
        "Https quay.io/v2/a/b",
    ];
    assert_eq!(lines(&files, CONTAINERD, "quay.io/a/b", STRICT), expected);
    let lax = lines(&files, CONTAINERD, "quay.io/a/b", LAX);
    assert_eq!(lax[..3], expected[..3], "what the Module allows is for the registry itself");
    assert_eq!(lax[3], "Either quay.io/v2/a/b unverified");
    assert_eq!(lines(&files, CONTAINERD, "ghcr.io/a/b", STRICT), ["Https ghcr.io/v2/a/b"]);
    let only_mirror = [("containerd/certs.d/_default/hosts.toml", "server = \"https://only.example.com\"")];
    let expected = ["Https only.example.com/v2/library/a ns=docker.io mirror"];
    assert_eq!(lines(&only_mirror, CONTAINERD, "a", STRICT), expected);
    let hub = [("containerd/certs.d/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"")];
    let expected = ["Https registry-1.docker.io/v2/library/a credentials=docker.io/library/a"];
    assert_eq!(lines(&hub, CONTAINERD, "a", STRICT), expected);
}

#[test]
fn the_folder_of_a_registry_is_found_by_each_of_its_names_in_every_root() {
    let mirror = |name: &str| format!("[host.\"https://{name}\"]");
    let first = |files: &[(&str, &str)], image: &str| lines(files, CONTAINERD, image, STRICT).remove(0);
    let (escaped, plain, default, docker) = (mirror("escaped"), mirror("plain"), mirror("default"), mirror("docker"));
    let all = [
        ("containerd/certs.d/r.io_5000_/hosts.toml", escaped.as_str()),
        ("containerd/certs.d/r.io:5000/hosts.toml", &plain),
        ("containerd/certs.d/_default/hosts.toml", &default),
        ("docker/certs.d/quay.io/hosts.toml", &docker),
    ];
    assert_eq!(first(&all, "r.io:5000/a"), "Https escaped/v2/a ns=r.io:5000 mirror");
    assert_eq!(first(&all[1..], "r.io:5000/a"), "Https plain/v2/a ns=r.io:5000 mirror");
    assert_eq!(first(&all[2..], "r.io:5000/a"), "Https default/v2/a ns=r.io:5000 mirror");
    assert_eq!(first(&all, "quay.io/a"), "Https default/v2/a ns=quay.io mirror", "the first root counts");
    assert_eq!(first(&all[3..], "quay.io/a"), "Https docker/v2/a ns=quay.io mirror");
}

#[test]
fn the_roots_are_those_of_the_configuration_and_of_what_it_imports() {
    let config = |plugin: &str, path: &str| format!("[plugins.\"{plugin}\".registry]\nconfig_path = \"{path}\"");
    let two = config("io.containerd.cri.v1.images", "/etc/one:/etc/two");
    let one = config("io.containerd.grpc.v1.cri", "/etc/one");
    let imports = "imports = [\"conf.d/*.toml\", \"/etc/elsewhere.toml\"]\n".to_owned() + &one;
    let mirrors = [
        ("one/quay.io/hosts.toml", "[host.\"https://one\"]"),
        ("two/ghcr.io/hosts.toml", "[host.\"https://two\"]"),
        ("three/quay.io/hosts.toml", "[host.\"https://three\"]"),
    ];
    let three = config("io.containerd.cri.v1.images", "/etc/three");
    let asked = |files: &[(&str, &str)], image: &str| {
        let all: Vec<_> = files.iter().copied().chain(mirrors).collect();
        lines(&all, CONTAINERD, image, STRICT).remove(0)
    };
    assert_eq!(asked(&[("containerd/config.toml", &two)], "quay.io/a"), "Https one/v2/a ns=quay.io mirror");
    assert_eq!(asked(&[("containerd/config.toml", &two)], "ghcr.io/a"), "Https two/v2/a ns=ghcr.io mirror");
    assert_eq!(asked(&[("containerd/config.toml", &one)], "ghcr.io/a"), "Https ghcr.io/v2/a");
    let files = [("containerd/config.toml", imports.as_str()), ("containerd/conf.d/9.toml", &three)];
    assert_eq!(asked(&files, "quay.io/a"), "Https three/v2/a ns=quay.io mirror");
    let files =
        [("containerd/config.toml", imports.as_str()), ("elsewhere.toml", &three), ("containerd/conf.d/1.toml", &two)];
    assert_eq!(asked(&files, "quay.io/a"), "Https three/v2/a ns=quay.io mirror", "the last one counts");

    let etc = etc(&[("containerd/config.toml", "version = "), ("containerd/certs.d/quay.io/hosts.toml", mirrors[0].1)]);
    let found = found(etc.path(), CONTAINERD, "quay.io/a", STRICT).unwrap();
    assert_eq!(told(&found.list[0]), "Https one/v2/a ns=quay.io mirror");
    assert!(found.notes[0].starts_with("/etc/containerd/config.toml: "), "{:?}", found.notes);
}

#[test]
fn a_registry_of_the_node_itself_may_speak_plain_http() {
    for (image, expected) in [
        ("localhost:5000/a", "Either localhost:5000/v2/a unverified"),
        ("127.0.0.1:80/a", "Http 127.0.0.1:80/v2/a"),
        ("127.0.0.1:443/a", "Https 127.0.0.1:443/v2/a unverified"),
        ("10.0.0.1:5000/a", "Https 10.0.0.1:5000/v2/a"),
    ] {
        assert_eq!(lines(&[], CONTAINERD, image, STRICT), [expected]);
    }
    assert_eq!(lines(&[], CRI_O, "localhost:5000/a", STRICT), ["Https localhost:5000/v2/a"]);
}

#[test]
fn what_containerd_passes_over_is_noted_and_what_it_refuses_is_an_error() {
    let broken = [("containerd/certs.d/quay.io/hosts.toml", "server = "), ("containerd/certs.d/quay.io/ca.crt", "@CA")];
    let folder = etc(&broken);
    let found_here = found(folder.path(), CONTAINERD, "quay.io/a", STRICT).unwrap();
    assert_eq!(found_here.list.iter().map(told).collect::<Vec<_>>(), ["Https quay.io/v2/a ca=1"]);
    assert_eq!(found_here.notes.len(), 1);
    assert!(found_here.notes[0].starts_with("/etc/containerd/certs.d/quay.io/hosts.toml: "), "{:?}", found_here.notes);

    let hosts = |line: &str| format!("[host.\"https://m\"]\n{line}");
    for (line, file, why) in [
        ("ca = \"none.pem\"", "/etc/containerd/certs.d/quay.io/none.pem", "it is not there"),
        ("ca = \"/etc/empty.pem\"", "/etc/empty.pem", "it holds no certificate of an authority"),
        ("client = \"/etc/empty.pem\"", "/etc/empty.pem", "it is no client certificate with a key"),
        (
            "[host.\"https://m\".header]\n\"a b\" = \"c\"",
            "/etc/containerd/certs.d/quay.io/hosts.toml",
            "\"a b\" is no name of a header",
        ),
        ("capabilities = [\"push\"]\n", "", ""),
    ] {
        let hosts = hosts(line);
        let folder = etc(&[("containerd/certs.d/quay.io/hosts.toml", &hosts), ("empty.pem", "")]);
        match found(folder.path(), CONTAINERD, "quay.io/a", STRICT) {
            Err(error) => assert_eq!(error, config(Path::new(file), &why), "{line}"),
            Ok(found) => assert_eq!((found.list.len(), file), (1, ""), "{line}"),
        }
    }
    let nobody = "server = \"https://m\"\ncapabilities = [\"push\"]";
    let folder = etc(&[("containerd/certs.d/quay.io/hosts.toml", nobody)]);
    let error = found(folder.path(), CONTAINERD, "quay.io/a", STRICT).unwrap_err();
    let expected = "the container runtime's configuration of the node cannot be used: \
                    /etc/containerd/certs.d/quay.io/hosts.toml: nothing may be pulled from any of its hosts; \
                    mend the file there";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn cri_o_asks_where_registries_conf_says() {
    let main = "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"m.io:5000/quay\"\ninsecure = true\n\
                [[registry]]\nprefix = \"bad.io\"\nlocation = \"bad.io\"";
    let dropin = "[[registry]]\nprefix = \"bad.io\"\nlocation = \"bad.io\"\nblocked = true\n\
                  [[registry]]\nprefix = \"old.io\"\nlocation = \"new.io/old\"\n\
                  [[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.io/hub\"";
    let files = [
        ("containers/registries.conf", main),
        ("containers/registries.conf.d/50.conf", dropin),
        ("containers/registries.conf.d/50.conf.bak", "nonsense"),
        ("containers/certs.d/m.io:5000/ca.crt", "@CA"),
        ("docker/certs.d/m.io:5000/ca.crt", "@CA\n@CA"),
        ("docker/certs.d/new.io/ca.crt", "@CA"),
    ];
    let asked = |image: &str, options| lines(&files, CRI_O, image, options);
    let mirror = "Either m.io:5000/v2/quay/a/b unverified ca=1 mirror";
    assert_eq!(asked("quay.io/a/b", STRICT), [mirror, "Https quay.io/v2/a/b"]);
    assert_eq!(asked("quay.io/a/b", LAX), [mirror, "Either quay.io/v2/a/b unverified"]);
    assert_eq!(asked("old.io/a", LAX), ["Https new.io/v2/old/a ca=1 mirror"], "it is another registry");
    let hub = "Https registry-1.docker.io/v2/library/a credentials=docker.io/library/a";
    assert_eq!(asked("a", STRICT), ["Https m.io/v2/hub/library/a mirror", hub]);
    let etc = etc(&files);
    let error = found(etc.path(), CRI_O, "bad.io/a", LAX).unwrap_err();
    assert!(matches!(&error, Error::Blocked { image } if image.starts_with("bad.io/a")), "{error}");
}

#[test]
fn what_cri_o_refuses_is_an_error_that_names_the_file() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 5] = [
        (
            &[("containers/registries.conf", "[[registry]]")],
            "registries.conf",
            "a registry has neither \"location\" nor \"prefix\"",
        ),
        (
            &[("containers/registries.conf.d/a.conf", "[[registry]]\nprefix = \"a\"")],
            "registries.conf.d/a.conf",
            "the registry with the prefix \"a\" has no \"location\"",
        ),
        (&[("containers/certs.d/quay.io/c.cert", "")], "certs.d/quay.io/c.cert", "its key c.key is missing"),
        (&[("containers/certs.d/quay.io/c.key", "")], "certs.d/quay.io/c.key", "its certificate c.cert is missing"),
        (
            &[("containers/certs.d/quay.io/c.key", ""), ("containers/certs.d/quay.io/c.cert", "@CA")],
            "certs.d/quay.io/c.cert",
            "it is no client certificate with a key",
        ),
    ];
    for (files, file, why) in cases {
        let etc = etc(files);
        let error = found(etc.path(), CRI_O, "quay.io/a", STRICT).unwrap_err();
        assert_eq!(error, config(&Path::new("/etc/containers").join(file), &why));
    }
}

#[test]
fn links_lead_where_they_lead_on_the_node_and_not_into_the_container() {
    let mirror = "[host.\"https://m\"]\nca = \"ca.pem\"";
    let file = "containerd/certs.d/quay.io/ca.pem";
    for (target, works) in [
        ("/etc/pki/real.pem", true),
        ("../../../pki/real.pem", true),
        ("/etc/pki/link.pem", true),
        ("../../../../../../../etc/pki/real.pem", true),
        ("/usr/share/ca.pem", false),
        ("../../../../usr/share/ca.pem", false),
        ("ca.pem", false),
    ] {
        let link = format!("-> {target}");
        let files = [
            ("containerd/certs.d/quay.io/hosts.toml", mirror),
            (file, &link),
            ("pki/real.pem", "@CA"),
            ("pki/link.pem", "-> ../pki/real.pem"),
        ];
        let etc = etc(&files);
        match found(etc.path(), CONTAINERD, "quay.io/a", STRICT) {
            Ok(found) => assert!(works && told(&found.list[0]).contains("ca=1"), "{target}"),
            Err(error) => assert!(!works && error.to_string().contains("/quay.io/ca.pem: "), "{target}: {error}"),
        }
    }
}

#[test]
fn files_that_are_no_files_or_too_large_are_not_read() {
    let etc = etc(&[("large", ""), ("folder/x", "")]);
    let files = HostFiles::new(etc.path());
    fs::write(etc.path().join("large"), vec![b'x'; (2 << 20) + 1]).unwrap();
    nix::unistd::mkfifo(&etc.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let why = |name: &str| files.read(&Path::new("/etc").join(name)).unwrap_err().to_string();
    assert_eq!(why("large"), "it is larger than 2097152 bytes");
    assert_eq!(why("pipe"), "it is no regular file");
    assert_eq!(why("folder"), "it is no regular file");
    assert_eq!(why("../var/lib/x"), "it is at /var of the node, and the worker sees nothing of the node but /etc");
    assert!(files.read(Path::new("/etc/none")).unwrap().is_none());
    assert!(files.names(Path::new("/etc/none")).unwrap().is_empty());
    assert!(!files.is_folder(Path::new("/etc/large")).unwrap());
}

#[test]
fn the_authorities_of_the_node_are_trusted_where_they_can_be_read() {
    let roots = |files: &[(&str, &str)]| {
        let etc = etc(files);
        let found = found(etc.path(), None, "quay.io/a", STRICT).unwrap();
        (found.list[0].tls.roots.as_ref().map(|roots| roots.len()), found.notes.len())
    };
    assert_eq!(roots(&[]), (None, 0));
    assert_eq!(roots(&[("pki/tls/certs/ca-bundle.crt", "# comment\n@CA\n@CA")]), (Some(2), 0));
    assert_eq!(roots(&[("ssl/certs/ca-certificates.crt", "no certificate"), ("ssl/cert.pem", "@CA")]), (Some(1), 1));
    assert_eq!(roots(&[("ssl/certs/ca-certificates.crt", "-> /nix/store/ca.crt")]), (None, 1));
}
