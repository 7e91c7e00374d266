//! `hosts.toml`: where containerd asks for the images of one registry.
//!
//! **Source**: containerd, `docs/hosts.md` and what its resolver does. Keys that are not known are passed over, as there.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use toml::{Table, Value};

use crate::oci::route::endpoint::Scheme;

/// One entry: a mirror, or as the last one the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// Scheme, `host[:port]` and path; `None` for the registry itself.
    pub(super) server: Option<Server>,
    /// Whether images may be pulled from it.
    pub(super) pulls: bool,
    /// Files with authorities, relative to the folder or absolute.
    pub(super) authorities: Vec<String>,
    /// Files with a client's certificate, and its key where that is another file.
    pub(super) clients: Vec<(String, Option<String>)>,
    pub(super) skip_verify: Option<bool>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) dial_timeout: Option<Duration>,
    pub(super) proxy: Option<Url>,
}

/// An address that stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) scheme: Scheme,
    pub(super) host: String,
    /// Of the API's root, without a slash at its end.
    pub(super) root: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    capabilities: Vec<String>,
    ca: Option<Value>,
    client: Option<Value>,
    skip_verify: Option<bool>,
    override_path: bool,
    header: Table,
    dial_timeout: String,
    proxy: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    server: String,
    host: Table,
}

/// The entries in the order in which they are asked, the server last.
///
/// **Errors**: in words, why containerd could not use the file either.
pub(super) fn parse(text: &str) -> Result<Vec<Host>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let words = |error: toml::de::Error| error.message().to_owned();
    let file: File = Value::Table(table.clone()).try_into().map_err(words)?;
    let root: Raw = Value::Table(table).try_into().map_err(words)?;
    let mut hosts = Vec::new();
    for (name, entry) in file.host {
        let raw: Raw = entry.try_into().map_err(words)?;
        hosts.push(host(&name, raw).map_err(|why| format!("host {name:?}: {why}"))?);
    }
    hosts.push(host(&file.server, root).map_err(|why| format!("server {:?}: {why}", file.server))?);
    Ok(hosts)
}

fn host(address: &str, raw: Raw) -> Result<Host, String> {
    let mut pulls = raw.capabilities.is_empty();
    for capability in &raw.capabilities {
        match capability.to_lowercase().as_str() {
            "pull" => pulls = true,
            "resolve" | "push" => {}
            other => return Err(format!("unknown capability {other:?}")),
        }
    }
    let dial_timeout = match raw.dial_timeout.as_str() {
        "" => None,
        text => {
            let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
            Some(parsed.ok_or_else(|| format!("dial_timeout {text:?} is no duration"))?)
        }
    };
    Ok(Host {
        server: if address.is_empty() { None } else { Some(server(address, raw.override_path)?) },
        // Without an address of its own the entry stands for the registry itself, from which everything may be had.
        pulls: pulls || address.is_empty(),
        authorities: raw.ca.map(|value| words("ca", value)).transpose()?.unwrap_or_default(),
        clients: raw.client.map(clients).transpose()?.unwrap_or_default(),
        skip_verify: raw.skip_verify,
        headers: headers(raw.header)?,
        dial_timeout,
        proxy: if raw.proxy.is_empty() { None } else { Some(proxy(&raw.proxy)?) },
    })
}

fn server(address: &str, override_path: bool) -> Result<Server, String> {
    let full = if address.starts_with("http") { address.to_owned() } else { format!("https://{address}") };
    let url = Url::parse(&full).map_err(|error| error.to_string())?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        other => return Err(format!("the scheme {other:?} is neither https nor http")),
    };
    let name = url.host_str().filter(|host| !host.is_empty()).ok_or("it has no host")?;
    let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    let path = url.path().trim_end_matches('/');
    let root = if override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    Ok(Server { scheme, host, root })
}

fn proxy(address: &str) -> Result<Url, String> {
    match Url::parse(address) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => Ok(url),
        // The address may hold a password.
        _ => Err("its proxy is no address of a proxy that is reached by http or https".to_owned()),
    }
}

fn words(key: &str, value: Value) -> Result<Vec<String>, String> {
    let one = |value| match value {
        Value::String(text) => Ok(text),
        other => Err(format!("{key:?} holds a value of the type {}, not a string", other.type_str())),
    };
    match value {
        Value::Array(all) => all.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn clients(value: Value) -> Result<Vec<(String, Option<String>)>, String> {
    let all = match value {
        Value::Array(all) => all,
        one => vec![one],
    };
    let mut clients = Vec::with_capacity(all.len());
    for client in all {
        let is_pair = client.is_array();
        let mut files = words("client", client)?.into_iter();
        match (files.next(), files.next(), files.next()) {
            (Some(both), None, None) if !is_pair => clients.push((both, None)),
            (Some(certificate), Some(key), None) => {
                clients.push((certificate, Some(key).filter(|key| !key.is_empty())));
            }
            _ => return Err("\"client\" holds a list that is no pair of certificate and key".to_owned()),
        }
    }
    Ok(clients)
}

fn headers(table: Table) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let values = words(&name, value)?;
        headers.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_and_the_order_is_that_of_the_file() {
        let text = r#"
            server = "https://registry.example.com/api"
            ca = "root.pem"
            unknown = 1
            [host."https://z.example.com"]
              capabilities = ["Pull", "resolve"]
              ca = ["/etc/a.pem", "b.pem"]
              client = [["c.cert", "c.key"], ["d.pem", ""], "e.pem"]
              skip_verify = true
              dial_timeout = "1m30s"
              [host."https://z.example.com".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."a.example.com:5000/prefix/v2"]
            [host."http://m.example.com/odd/path/"]
              override_path = true
              capabilities = ["push"]
              client = "both.pem"
              proxy = "http://proxy:3128"
        "#;
        let server = |scheme, host: &str, root: &str| Some(Server { scheme, host: host.into(), root: root.into() });
        let pair = |one: &str, other: Option<&str>| (one.to_owned(), other.map(str::to_owned));
        let expected = [
            Host {
                server: server(Scheme::Https, "z.example.com", "/v2"),
                pulls: true,
                authorities: vec!["/etc/a.pem".into(), "b.pem".into()],
                clients: vec![pair("c.cert", Some("c.key")), pair("d.pem", None), pair("e.pem", None)],
                skip_verify: Some(true),
                headers: [("x-one", "1"), ("x-two", "2"), ("x-two", "3")].map(|(a, b)| (a.into(), b.into())).into(),
                dial_timeout: Some(Duration::from_secs(90)),
                proxy: None,
            },
            Host { server: server(Scheme::Https, "a.example.com:5000", "/prefix/v2"), pulls: true, ..Host::default() },
            Host {
                server: server(Scheme::Http, "m.example.com", "/odd/path"),
                clients: vec![pair("both.pem", None)],
                proxy: Some("http://proxy:3128".parse().unwrap()),
                ..Host::default()
            },
            Host {
                server: server(Scheme::Https, "registry.example.com", "/api/v2"),
                pulls: true,
                authorities: vec!["root.pem".into()],
                ..Host::default()
            },
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), [Host { pulls: true, ..Host::default() }], "the registry itself");
    }

    #[test]
    fn what_containerd_refuses_is_refused_in_words() {
        for (text, expected) in [
            ("server = ", "string values must be quoted, expected literal string"),
            ("server = 5", "invalid type: integer `5`, expected a string"),
            ("[host.\"https://a\"]\ncapabilities = [\"pul\"]", "host \"https://a\": unknown capability \"pul\""),
            (
                "[host.\"https://a\"]\ndial_timeout = \"soon\"",
                "host \"https://a\": dial_timeout \"soon\" is no duration",
            ),
            ("ca = 3", "server \"\": \"ca\" holds a value of the type integer, not a string"),
            ("client = [[\"a\"]]", "server \"\": \"client\" holds a list that is no pair of certificate and key"),
            (
                "client = [[\"a\", \"b\", \"c\"]]",
                "server \"\": \"client\" holds a list that is no pair of certificate and key",
            ),
            ("[header]\nx = 1", "server \"\": \"x\" holds a value of the type integer, not a string"),
            ("server = \"https://\"", "server \"https://\": empty host"),
            ("server = \"httpx://a\"", "server \"httpx://a\": the scheme \"httpx\" is neither https nor http"),
            (
                "proxy = \"socks5://u:hunter2@p\"",
                "server \"\": its proxy is no address of a proxy that is reached by http or https",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
