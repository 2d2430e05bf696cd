//! Certificates for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes an authority and certificates with OpenSSL.
pub struct Authority {
    folder: PathBuf,
    name: &'static str,
}

impl Authority {
    /// `NAME.crt` and `NAME.key` in a folder.
    pub fn new(folder: &Path, name: &'static str) -> Self {
        let this = Self { folder: folder.to_owned(), name };
        let key = this.path(&format!("{name}.key"));
        this.openssl(
            &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"],
            &["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &this.path(&format!("{name}.crt"))],
        );
        this
    }

    /// One of its files.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    #[expect(clippy::unused_self, reason = "reads as what it is: for this authority")]
    fn openssl(&self, arguments: &[&str], more: &[&str]) {
        let output = Command::new("openssl").args(arguments).args(more).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `NAME.crt` and `NAME.key`, signed by this authority.
    pub fn issue(&self, name: &str, subject: &str, alternative: &str, key: &[&str]) {
        let (request, extensions) = (self.path(&format!("{name}.csr")), self.path(&format!("{name}.ext")));
        let subject = format!("/CN={subject}");
        let mut arguments = vec!["req", "-new", "-nodes", "-newkey"];
        arguments.extend(key);
        self.openssl(&arguments, &["-subj", &subject, "-keyout", &self.path(&format!("{name}.key")), "-out", &request]);
        fs::write(&extensions, format!("basicConstraints=CA:FALSE\nsubjectAltName={alternative}\n")).unwrap();
        let (certificate, ca, ca_key) =
            (self.path(&format!("{name}.crt")), self.path(&format!("{}.crt", self.name)), self.path(&format!("{}.key", self.name)));
        let signing = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-sha384"];
        self.openssl(&signing, &["-extfile", &extensions, "-out", &certificate]);
    }
}
