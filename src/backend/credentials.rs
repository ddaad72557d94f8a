//! The login to Redis and to the sentinels, and the sources of its passwords.

use std::fs;
use std::path::{Path, PathBuf};

use redis::Cmd;

use super::dial::PrepareError;
use super::settings::Settings;
use crate::settings::Secret;

/// The user of a password without a user name.
pub(super) const DEFAULT_USER: &str = "default";

/// The variable with systemd's credential directory.
const CREDENTIAL_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// The file in systemd's credential directory that holds the password.
const CREDENTIAL: &str = "redis-password";

/// The user and password of a login.
pub(super) struct Login {
    username: String,
    pub(super) password: Secret,
}

/// Returns the login to Redis, or `None` if neither user nor password is configured.
///
/// # Errors
/// [`PrepareError`] if the password file cannot be read.
pub(super) fn load_login(settings: &Settings) -> Result<Option<Login>, PrepareError> {
    let password = password(settings)?;
    let username =
        if settings.username.is_empty() { &settings.url.username } else { &settings.username };
    let login = Login { username: username.clone(), password };
    Ok(if login.password.is_empty() && login.username.is_empty() { None } else { Some(login) })
}

/// Whether the password is in a file, which may be on a disk that hangs.
pub(super) fn is_in_file(settings: &Settings) -> bool {
    settings.password.is_empty()
        && (!settings.password_file.as_os_str().is_empty()
            || std::env::var_os(CREDENTIAL_DIRECTORY).is_some())
}

/// Returns the login to the sentinels, or `None` if neither user nor password is configured.
///
/// # Errors
/// [`PrepareError`] if the password file cannot be read.
pub(super) fn load_sentinel_login(settings: &Settings) -> Result<Option<Login>, PrepareError> {
    let path = &settings.sentinel_password_file;
    let password = if path.as_os_str().is_empty() {
        Secret::default()
    } else {
        read_password("sentinel_password_file", path)?
    };
    let login = Login { username: settings.sentinel_username.clone(), password };
    Ok(if login.password.is_empty() && login.username.is_empty() { None } else { Some(login) })
}

/// Returns the password from the first source that has one: setting, file, systemd credential,
/// address.
fn password(settings: &Settings) -> Result<Secret, PrepareError> {
    if !settings.password.is_empty() {
        return Ok(settings.password.clone());
    }
    if !settings.password_file.as_os_str().is_empty() {
        return read_password("password_file", &settings.password_file);
    }
    let credential = std::env::var_os(CREDENTIAL_DIRECTORY)
        .map(|directory| Path::new(&directory).join(CREDENTIAL));
    match credential {
        Some(path) if path.exists() => read_password("password (systemd credential)", &path),
        _ => Ok(settings.url.password.clone()),
    }
}

/// Reads a password, without the line end behind it.
fn read_password(key: &'static str, path: &Path) -> Result<Secret, PrepareError> {
    let text = fs::read_to_string(path).map_err(|error| PrepareError::new(key, path, &error))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(PrepareError::new(key, path, &"it is empty; expected the password"));
    }
    Ok(Secret::from(password.to_owned()))
}

/// A login to Redis beside that of the proxy. Its password is read again for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherLogin {
    username: String,
    password_file: PathBuf,
}

impl OtherLogin {
    /// The login of this user with the password in a file.
    pub fn new(username: String, password_file: PathBuf) -> Self {
        Self { username, password_file }
    }

    /// Checks that the password can be read.
    ///
    /// # Errors
    /// The problem, as text.
    pub fn check(&self) -> Result<(), String> {
        self.load().map(drop)
    }

    pub(super) fn load(&self) -> Result<Login, String> {
        let text = fs::read_to_string(&self.password_file).map_err(|error| error.to_string())?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err("it is empty; expected the password".into());
        }
        let password = Secret::from(password.to_owned());
        Ok(Login { username: self.username.clone(), password })
    }
}

impl Login {
    /// Returns the user's name in Redis.
    pub(super) fn user(&self) -> &str {
        if self.username.is_empty() { DEFAULT_USER } else { &self.username }
    }

    pub(super) fn command(&self) -> Cmd {
        let mut command = redis::cmd("AUTH");
        if !self.username.is_empty() {
            command.arg(&self.username);
        }
        command.arg(self.password.reveal());
        command
    }
}
