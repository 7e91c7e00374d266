//! Which proxy a request goes through.
//!
//! **Source**: `golang.org/x/net/http/httpproxy`, whose reading of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` the container
//! runtimes and the rest of Kubernetes share. Two differences: internationalised names are compared as they are written, and
//! proxies of the scheme `socks5` are refused.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// The value of a setting is none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The proxy's address; it may hold a password, so only the setting is named.
    #[error("{setting} is no address of a proxy; write for instance `http://proxy.example.com:3128`")]
    Address {
        /// The variable.
        setting: &'static str,
    },
    /// A scheme that is not spoken.
    #[error("{setting} has the scheme `{scheme}`; a proxy is reached by `http` or `https`")]
    Scheme {
        /// The variable.
        setting: &'static str,
        /// Its scheme.
        scheme: String,
    },
}

/// The proxies of this process, and what is asked without them. The default is no proxy.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
    /// As they were given: what is handed on to the workers.
    given: Vec<(&'static str, String)>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may hold passwords.
        f.debug_struct("Proxies").field("exceptions", &self.exceptions).finish_non_exhaustive()
    }
}

/// What is asked directly. A port, where one is given, must be equal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    /// All names that end so; with its leading dot. `true`: also the name itself.
    Domain(String, bool, Option<u16>),
}

impl Proxies {
    /// Reads the values of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; an empty one is as good as none.
    ///
    /// **Errors**: an address that cannot be used. What cannot be understood of `no_proxy` excepts nothing, as in Go.
    pub fn new(http: &str, https: &str, no_proxy: &str) -> Result<Self, Error> {
        let values = [("HTTP_PROXY", http), ("HTTPS_PROXY", https), ("NO_PROXY", no_proxy)];
        let given = values.into_iter().filter(|(_, value)| !value.trim().is_empty());
        Ok(Self {
            http: address("HTTP_PROXY", http)?,
            https: address("HTTPS_PROXY", https)?,
            exceptions: no_proxy.split(',').filter_map(exception).collect(),
            given: given.map(|(name, value)| (name, value.to_owned())).collect(),
        })
    }

    /// Variables and their values, as another process is told the same.
    pub fn variables(&self) -> &[(&'static str, String)] {
        &self.given
    }

    /// The proxy for a request; `None` for a direct one, always so for the machine itself.
    pub(crate) fn proxy(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let ip = host.parse::<IpAddr>().ok();
        let port = url.port_or_known_default();
        let here = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        let excepted = self.exceptions.iter().any(|exception| exception.fits(&host, ip, port));
        (!here && !excepted).then_some(proxy)
    }
}

impl Exception {
    fn fits(&self, host: &str, ip: Option<IpAddr>, port: Option<u16>) -> bool {
        let same_port = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Self::Everything => true,
            Self::Network(network, bits) => ip.is_some_and(|ip| is_inside(ip, *network, *bits)),
            Self::Address(address, wanted) => ip == Some(*address) && same_port(wanted),
            Self::Domain(ending, itself, wanted) => {
                let fits = host.ends_with(ending.as_str()) || (*itself && host == &ending[1..]);
                fits && same_port(wanted)
            }
        }
    }
}

fn address(setting: &'static str, value: &str) -> Result<Option<Url>, Error> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(None);
    }
    let full = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url = Url::parse(&full).map_err(|_| Error::Address { setting })?;
    match url.scheme() {
        "http" | "https" if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(Some(url)),
        "http" | "https" => Err(Error::Address { setting }),
        scheme => Err(Error::Scheme { setting, scheme: scheme.to_owned() }),
    }
}

fn exception(value: &str) -> Option<Exception> {
    let value = value.trim().to_lowercase();
    if value == "*" {
        return Some(Exception::Everything);
    }
    if let Some((network, bits)) = value.split_once('/')
        && let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u8>())
    {
        return (bits <= if network.is_ipv4() { 32 } else { 128 }).then_some(Exception::Network(network, bits));
    }
    if let Ok(ip) = value.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Exception::Address(ip, None));
    }
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (value.as_str(), None),
    };
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Exception::Address(ip, port));
    }
    let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
    match host.strip_prefix('.') {
        Some("") => None,
        Some(_) => Some(Exception::Domain(host.to_owned(), false, port)),
        None if host.is_empty() => None,
        None => Some(Exception::Domain(format!(".{host}"), true, port)),
    }
}

fn is_inside(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |one: u128, other: u128, width: u32| {
        let rest = width.saturating_sub(u32::from(bits));
        one.checked_shr(rest).unwrap_or(0) == other.checked_shr(rest).unwrap_or(0)
    };
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => same(u32::from(ip).into(), u32::from(network).into(), 32),
        (IpAddr::V6(ip), IpAddr::V6(network)) => same(ip.into(), network.into(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_which_proxy_is_as_in_go() {
        let no_proxy = "Example.com, .dotted.org,*.star.org,10.1.0.0/16,10.9.9.9,port.net:8443,10.8.8.8:80,[fd00::1]:443,fd01::/16,,:5,a:b";
        let proxies = Proxies::new("http://plain:3128", "secure:3129", no_proxy).unwrap();
        let (plain, secure) = (Some("http://plain:3128/"), Some("http://secure:3129/"));
        for (url, expected) in [
            ("https://quay.io/v2/", secure),
            ("http://quay.io/v2/", plain),
            ("https://example.com", None),
            ("https://sub.EXAMPLE.com:5000", None),
            ("https://notexample.com", secure),
            ("https://dotted.org", secure),
            ("https://a.dotted.org", None),
            ("https://star.org", secure),
            ("https://a.star.org", None),
            ("https://10.1.2.3", None),
            ("https://10.2.2.3", secure),
            ("https://10.9.9.9:5000", None),
            ("https://port.net:8443", None),
            ("https://port.net", secure),
            ("http://10.8.8.8", None),
            ("http://10.8.8.8:81", plain),
            ("https://[fd00::1]", None),
            ("https://[fd00::1]:444", secure),
            ("https://[fd01:2::3]", None),
            ("https://localhost:5000", None),
            ("http://127.0.0.9", None),
            ("https://[::1]:5000", None),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(proxies.proxy(&url).map(Url::as_str), expected, "{url}");
        }
        let everything = Proxies::new("p:1", "p:1", "*").unwrap();
        assert_eq!(everything.proxy(&Url::parse("https://quay.io").unwrap()), None);
        let one = Proxies::new("", "p:1", "").unwrap();
        assert_eq!(one.proxy(&Url::parse("http://quay.io").unwrap()), None);
        assert_eq!(one.variables(), [("HTTPS_PROXY", "p:1".to_owned())]);
        assert_eq!(Proxies::new("", " ", "").unwrap(), Proxies::default());
    }

    #[test]
    fn an_address_that_cannot_be_used_is_told_without_its_password() {
        let error = Proxies::new("", "http://user:hunter2@", "").unwrap_err();
        assert_eq!(error, Error::Address { setting: "HTTPS_PROXY" });
        let error = Proxies::new("socks5://user:hunter2@proxy:1", "", "").unwrap_err();
        assert_eq!(error.to_string(), "HTTP_PROXY has the scheme `socks5`; a proxy is reached by `http` or `https`");
        let debug = format!("{:?}", Proxies::new("http://user:hunter2@proxy:1", "", "a.b").unwrap());
        assert!(!debug.contains("hunter2") && debug.contains(".a.b"), "{debug}");
    }
}
