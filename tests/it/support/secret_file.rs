//! Secret files that change, and reloads that read them again.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{Proxy, Reload};

/// A file with a secret that can be changed.
pub(crate) struct SecretFile(TempDir);

impl SecretFile {
    pub(crate) fn new(content: &str) -> Self {
        let file = Self(tempfile::tempdir().expect("a temporary directory"));
        file.write(content);
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    pub(crate) fn name(&self) -> String {
        self.path().to_str().expect("a path that is text").to_owned()
    }

    pub(crate) fn write(&self, content: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, content).expect("the file is written");
        fs::rename(next, self.path()).expect("the file is replaced");
    }
}

/// Makes the proxy read its files again; its own configuration stays as it is.
#[track_caller]
pub(crate) fn reload(proxy: &Proxy) -> Reload {
    let config = fs::read_to_string(proxy.config_path()).unwrap();
    proxy.reload(&config)
}

/// Asserts that the log contains none of these.
#[track_caller]
pub(crate) fn assert_not_told(proxy: &Proxy, secrets: &[&str]) {
    for line in proxy.log_lines() {
        assert!(!secrets.iter().any(|secret| line.text().contains(secret)), "{}", line.text());
    }
}
