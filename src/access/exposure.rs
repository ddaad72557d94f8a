//! The exposure of a listener to other hosts, and the authentication that it then requires
//! (invariant A1).

use std::net::IpAddr;

/// The authentication that a listener requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRequirement {
    /// Every client must authenticate, by a token or a certificate.
    Enforced,
    /// Authentication is waived explicitly by `allow_unprotected`.
    Waived,
    /// No authentication and no waiver. Holds the keys that would enforce authentication, for the
    /// error text.
    None(&'static str),
}

impl AuthRequirement {
    /// Returns the requirement of a listener. `keys` would enforce authentication, for the error
    /// text.
    pub(crate) fn new(is_waived: bool, is_enforced: bool, keys: &'static str) -> Self {
        match (is_waived, is_enforced) {
            (true, _) => Self::Waived,
            (false, true) => Self::Enforced,
            (false, false) => Self::None(keys),
        }
    }
}

/// A listener that other hosts can reach and that neither requires authentication nor has a waiver.
#[derive(Debug, thiserror::Error)]
#[error(
    "{section}.allow_unprotected: listener {address} is reachable from other hosts without \
        authentication; \
     set {remedy}a loopback address in {section}.listen, or {section}.allow_unprotected = true"
)]
pub struct UnprotectedListener {
    section: &'static str,
    address: String,
    remedy: &'static str,
}

impl AuthRequirement {
    /// Checks this requirement against the `address` that the listener of `section` is bound to.
    /// `listen` is the address as text, for the error.
    ///
    /// # Errors
    /// `UnprotectedListener` if other hosts can reach the address without authentication and
    /// without a waiver.
    pub fn check(
        self,
        section: &'static str,
        address: IpAddr,
        listen: &str,
    ) -> Result<(), UnprotectedListener> {
        match self {
            Self::None(remedy) if is_exposed(address) => {
                Err(UnprotectedListener { section, address: listen.to_owned(), remedy })
            }
            _ => Ok(()),
        }
    }
}

impl UnprotectedListener {
    /// Returns the error text without the leading key, for callers that name the key themselves.
    pub fn message(&self) -> String {
        let whole = self.to_string();
        whole.split_once(": ").map_or(whole.clone(), |(_, message)| message.to_owned())
    }
}

/// Whether other hosts can reach this address.
pub fn is_exposed(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_unexposed() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("127.8.9.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", true),
            ("::", true),
            ("::ffff:0.0.0.0", true),
            ("10.0.0.1", true),
            ("169.254.1.1", true),
            ("fe80::1", true),
            ("::ffff:10.0.0.1", true),
        ] {
            assert_eq!(is_exposed(address.parse().unwrap()), expected, "{address}");
        }
    }
}
