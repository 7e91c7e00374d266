//! Certificates of a control plane, made with openssl: P-256 keys, one authority, any number of identities.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::output;

/// An authority with its key in a folder, `ca.crt` and `ca.key`.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

/// A certificate and its key, as files in PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        // The system's openssl.cnf adds extensions of its own; with this one only ours are there.
        std::fs::write(dir.join("openssl.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")?;
        let this = Self { dir: dir.to_owned() };
        let mut command = this.request("ca", &format!("/CN={}", escape(name)));
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
        command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]);
        output(&mut command)?;
        Ok(this)
    }

    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    pub fn pem(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.certificate())?)
    }

    /// A certificate for both ends of a connection. `names` are entries of the subject's alternative names, such as
    /// `IP:172.30.0.1` or `DNS:localhost`; each of `groups` becomes an organisation, as Kubernetes reads them.
    pub fn issue(&self, file: &str, common_name: &str, groups: &[&str], names: &[String]) -> Result<Certificate> {
        let mut subject = String::new();
        for group in groups {
            subject.push_str("/O=");
            subject.push_str(&escape(group));
        }
        subject.push_str("/CN=");
        subject.push_str(&escape(common_name));
        let mut command = self.request(file, &subject);
        command.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.key());
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", "keyUsage=critical,digitalSignature,keyEncipherment"]);
        command.args(["-addext", "extendedKeyUsage=clientAuth,serverAuth"]);
        if !names.is_empty() {
            command.arg("-addext").arg(format!("subjectAltName={}", names.join(",")));
        }
        output(&mut command)?;
        Ok(Certificate { certificate: self.dir.join(format!("{file}.crt")), key: self.dir.join(format!("{file}.key")) })
    }

    fn request(&self, file: &str, subject: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
            "-days",
            "3650",
        ]);
        command.arg("-config").arg(self.dir.join("openssl.cnf")).arg("-subj").arg(subject);
        command.arg("-keyout").arg(self.dir.join(format!("{file}.key")));
        command.arg("-out").arg(self.dir.join(format!("{file}.crt")));
        command
    }
}

/// A key pair for signing service account tokens: the private key and the public key, in PEM.
pub fn token_keys(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (key, public) = (dir.join("sa.key"), dir.join("sa.pub"));
    let mut command = Command::new("openssl");
    command.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]).arg(&key);
    output(&mut command)?;
    output(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public))?;
    Ok((key, public))
}

// The separator of openssl's subjects.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('/', "\\/")
}
