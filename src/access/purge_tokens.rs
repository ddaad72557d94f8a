//! The tokens with the right `purge`, of both files of tokens.

use super::allowlist::KeyAllowlist;
use super::bearer::{BearerAuth, parse_bearer};
use super::token_file::TokenFile;

/// The tokens that may purge keys and explain them. Clones share them.
#[derive(Clone, Default)]
pub struct PurgeTokens {
    /// Those of `http.tokens_file`.
    pub bearer: Option<BearerAuth>,
    /// Those of `rest.tokens_file`.
    pub rest: Option<TokenFile>,
}

impl PurgeTokens {
    /// Returns the keys that the token in these `Authorization` headers may purge. `None` if it may
    /// purge none, or if there are several headers: it is not clear which one counts.
    pub(crate) fn keys<'a>(
        &self,
        mut shown: impl Iterator<Item = &'a [u8]>,
    ) -> Option<KeyAllowlist> {
        let (first, second) = (shown.next(), shown.next());
        let token = first.filter(|_| second.is_none()).and_then(parse_bearer)?;
        // Both files are always searched. The duration does not disclose which one has the token.
        let of_bearer = self.bearer.as_ref().is_some_and(|bearer| bearer.may_purge(token));
        let of_rest = self.rest.as_ref().and_then(|rest| rest.rights(token));
        let of_rest = of_rest.filter(|rights| rights.may_purge).map(|rights| rights.keys);
        if of_bearer { Some(KeyAllowlist::default()) } else { of_rest }
    }
}
