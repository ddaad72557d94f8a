//! The commands that concern no key: logins, the state of a connection, and facts about Redis.

use std::fmt::Write as _;

use super::commands::{Kind, Spec};
use super::hashes::Field;
use super::{Access, Model, Outcome, Protocol, Role, SYNTAX, USERS, Value, Version};

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

const HELLO_WITHOUT_LOGIN: &str = "NOAUTH HELLO must be called with the client already \
    authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
    authenticate the client and select the RESP protocol version at the same time";

impl Model {
    pub(super) fn administer(&mut self, name: &str, command: &[Vec<u8>]) -> Outcome {
        let words: Vec<_> =
            command.iter().map(|word| String::from_utf8_lossy(word).to_lowercase()).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        match (name, &words[1..]) {
            ("ping", []) => self.write(b"+PONG\r\n"),
            ("ping" | "echo", [_]) => self.bulk(&command[1]),
            ("hello", rest) => return self.hello(rest),
            ("select", ["0"]) | ("client", ["setname" | "no-evict", _]) => return self.ok(),
            ("asking", []) => return self.ask(),
            ("cluster", words) => return self.cluster(words),
            ("auth", [password]) => return self.auth("default", password),
            ("auth", [name, password]) => return self.auth(name, password),
            ("client", ["id"]) => return self.integer(i64::try_from(self.current).unwrap_or(0)),
            ("client", ["tracking", state]) => return self.track(state),
            ("client", ["trackinginfo"]) => self.tracking_info(),
            ("client", [other, ..]) => {
                return Err(format!("ERR unknown subcommand '{other}'. Try CLIENT HELP."));
            }
            ("config", ["get", "tracking-table-max-keys"]) => {
                self.head('%', 1);
                self.bulk(b"tracking-table-max-keys");
                self.bulk(b"1000000");
            }
            ("acl", ["getuser", "default"]) => self.user(),
            ("command", []) => self.command_info(&Spec::names(self.version)),
            ("command", ["info", names @ ..]) => self.command_info(names),
            ("info", sections) => self.info(sections),
            ("role", []) if self.role == Role::Primary => {
                self.write(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n");
            }
            ("role", []) => {
                self.write(b"*5\r\n$5\r\nslave\r\n$1\r\n-\r\n:0\r\n$4\r\nsync\r\n:-1\r\n");
            }
            _ => return Err(format!("ERR the model does not know this form of '{name}'")),
        }
        Ok(())
    }

    /// Logs the client in. Redis 8.0 sends no rejection behind a reply that is still to be sent.
    fn auth(&mut self, name: &str, password: &str) -> Outcome {
        if self.log_in(name, password) { self.ok() } else { self.reject_login() }
    }

    fn reject_login(&mut self) -> Outcome {
        let is_silent = self.version == Version::Eight && !self.client().output.is_empty();
        if is_silent { Ok(()) } else { Err(WRONG_PASSWORD.to_owned()) }
    }

    fn log_in(&mut self, name: &str, password: &str) -> bool {
        let user = USERS.iter().find(|user| user.name == name);
        let user = match self.access {
            // The default user needs no password.
            Access::Open => user.filter(|user| user.name == "default"),
            Access::Users => user.filter(|user| user.password == password),
        };
        if user.is_some() {
            self.client().user = user;
        }
        user.is_some()
    }

    fn hello(&mut self, rest: &[&str]) -> Outcome {
        match rest {
            [] | ["2" | "3"] => {}
            ["2" | "3", "auth", name, password] => {
                if !self.log_in(name, password) {
                    return self.reject_login();
                }
            }
            ["2" | "3", ..] => return Err(SYNTAX.to_owned()),
            _ => return Err("NOPROTO unsupported protocol version".to_owned()),
        }
        if self.client().user.is_none() {
            return Err(HELLO_WITHOUT_LOGIN.to_owned());
        }
        match rest.first() {
            Some(&"3") => self.client().protocol = Protocol::Resp3,
            Some(_) => self.client().protocol = Protocol::Resp2,
            None => {}
        }
        let protocol = if self.client().protocol == Protocol::Resp3 { 3 } else { 2 };
        let id = self.current;
        self.head('%', 7);
        for (name, value) in [("server", "redis"), ("version", self.version_text())] {
            self.bulk(name.as_bytes());
            self.bulk(value.as_bytes());
        }
        self.bulk(b"proto");
        self.integer(protocol)?;
        self.bulk(b"id");
        self.integer(i64::try_from(id).unwrap_or(0))?;
        let role = if self.role == Role::Primary { "master" } else { "replica" };
        let mode = if self.cluster.is_some() { "cluster" } else { "standalone" };
        for (name, value) in [("mode", mode), ("role", role)] {
            self.bulk(name.as_bytes());
            self.bulk(value.as_bytes());
        }
        self.bulk(b"modules");
        self.head('*', 0);
        Ok(())
    }

    fn version_text(&self) -> &'static str {
        if self.version == Version::Seven { "7.0.15" } else { "8.0.2" }
    }

    fn track(&mut self, state: &str) -> Outcome {
        match state {
            "on" => self.client().is_tracking = true,
            "off" => self.client().is_tracking = false,
            _ => return Err(SYNTAX.to_owned()),
        }
        self.ok()
    }

    fn tracking_info(&mut self) {
        let is_on = self.client().is_tracking;
        self.head('%', 3);
        self.bulk(b"flags");
        self.head('~', 1);
        self.bulk(if is_on { b"on" } else { b"off" });
        self.bulk(b"redirect");
        self.write(if is_on { b":0\r\n" } else { b":-1\r\n" });
        self.bulk(b"prefixes");
        self.head('*', 0);
    }

    fn user(&mut self) {
        self.head('%', 6);
        self.bulk(b"flags");
        self.head('~', 2);
        self.bulk(b"on");
        self.bulk(b"nopass");
        self.bulk(b"passwords");
        self.head('*', 0);
        for (name, rules) in [("commands", "+@all"), ("keys", "~*"), ("channels", "&*")] {
            self.bulk(name.as_bytes());
            self.bulk(rules.as_bytes());
        }
        self.bulk(b"selectors");
        self.head('*', 0);
    }

    /// Writes what the proxy looks at: names, flags, the first key, tips and key specifications.
    fn command_info(&mut self, names: &[&str]) {
        self.head('*', names.len());
        for name in names {
            let Some(spec) = Spec::find(name.as_bytes(), self.version) else {
                self.null();
                continue;
            };
            self.head('*', 10);
            self.bulk(spec.name.as_bytes());
            _ = self.integer(spec.arity);
            let flags: &[&str] = match spec.kind {
                Kind::Read => &["readonly"],
                Kind::Write => &["write"],
                Kind::Other => &[],
            };
            self.head('~', flags.len());
            for flag in flags {
                self.write(format!("+{flag}\r\n").as_bytes());
            }
            let (first, last, step) = spec.keys;
            for number in [first, last, step] {
                _ = self.integer(number);
            }
            self.head('~', 0);
            self.head('*', spec.tips.len());
            for tip in spec.tips {
                self.bulk(tip.as_bytes());
            }
            self.key_specifications(spec);
            self.head('*', 0);
        }
    }

    /// Writes where the keys of a command are.
    fn key_specifications(&mut self, spec: &Spec) {
        let (first, last, step) = spec.keys;
        self.head('*', usize::from(first > 0));
        if first == 0 {
            return;
        }
        // Redis counts the last key from the first one.
        let last = if last < 0 { last } else { last - first };
        let begin = [("index", first)];
        let find = [("lastkey", last), ("keystep", step), ("limit", 0)];
        self.head('%', 3);
        self.bulk(b"flags");
        self.head('~', 0);
        let places: [(_, _, &[_]); 2] =
            [("begin_search", "index", &begin), ("find_keys", "range", &find)];
        for (name, kind, fields) in places {
            self.bulk(name.as_bytes());
            self.head('%', 2);
            self.bulk(b"type");
            self.bulk(kind.as_bytes());
            self.bulk(b"spec");
            self.head('%', fields.len());
            for (field, number) in fields {
                self.bulk(field.as_bytes());
                _ = self.integer(*number);
            }
        }
    }

    fn info(&mut self, sections: &[&str]) {
        let has = |name| sections.is_empty() || sections.contains(&name);
        let mut text = String::new();
        if has("server") {
            let version = self.version_text();
            _ = write!(text, "# Server\r\nredis_version:{version}\r\n");
            text += "executable:/usr/bin/redis-server\r\n";
        }
        if has("keyspace") {
            let expiring = self.keys.values().filter(|entry| entry.expires_at.is_some()).count();
            text += if text.is_empty() { "# Keyspace\r\n" } else { "\r\n# Keyspace\r\n" };
            if !self.keys.is_empty() {
                let keys = self.keys.len();
                _ = write!(text, "db0:keys={keys},expires={expiring},avg_ttl=0");
                if self.version == Version::Eight {
                    _ = write!(text, ",subexpiry={}", self.hashes_with_ends());
                }
                text += "\r\n";
            }
        }
        if self.client().protocol == Protocol::Resp3 {
            self.write(format!("={}\r\ntxt:{text}\r\n", text.len() + 4).as_bytes());
        } else {
            self.bulk(text.as_bytes());
        }
    }

    /// Returns the number of hashes in which a field has a time to live.
    fn hashes_with_ends(&self) -> usize {
        let has_end = |field: &Field| field.expires_at.is_some();
        let counts = |value: &Value| match value {
            Value::Hash(fields) => fields.values().any(has_end),
            Value::Text(_) => false,
        };
        self.keys.values().filter(|entry| counts(&entry.value)).count()
    }
}
