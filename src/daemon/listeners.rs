//! The listeners of the front ends, built from the configuration.

use std::sync::Arc;

use axum::Router;

use super::fd_limit::FdBudget;
use super::start_error::StartError;
use super::systemd::ActivatedSockets;
use crate::access::{BearerAuth, FileError, Prepare, PurgeTokens};
use crate::config::Config;
use crate::http::{self, CacheAccess, HttpService, Observer, TrustedPeers};
use crate::metrics::{FrontEnd, Metrics, RejectReason};
use crate::proxy::Proxy;
use crate::resp::Resp;
use crate::rest::{Rest, WithRest};
use crate::server::{Listener, ListenerConfig, Tls};
use crate::settings::Listen;
use crate::status::Status;

/// The parts that every front end is built from.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    /// The most clients of each front end.
    pub(super) fd_budget: FdBudget,
    pub(super) status: &'a Status,
    pub(super) proxy: &'a Proxy,
    pub(super) metrics: &'a Arc<Metrics>,
}

/// The front ends that are served, and the files that a reload must read.
struct FrontEnds<'a> {
    parts: &'a Parts<'a>,
    listeners: Vec<(FrontEnd, &'a Listen, ListenerConfig)>,
    files: Vec<Prepare>,
}

/// Binds the listeners of the configuration. Returns them with the files that a reload must read.
///
/// # Errors
/// [`StartError`] if a file cannot be used, or an address cannot be bound.
pub(super) async fn bind(
    parts: Parts<'_>,
    mut activated: ActivatedSockets,
) -> Result<(Vec<Listener>, Vec<Prepare>), StartError> {
    let config = parts.config;
    let is_served =
        |front_end: FrontEnd, listen: &Listen| activated.has(front_end.name()) || !listen.is_off();
    let is_admin_apart = is_served(FrontEnd::Admin, &config.admin.listen);
    let is_rest_apart = is_served(FrontEnd::Rest, &config.rest.listen);
    let auth = config.http.bearer_auth()?;
    let rest = rest(&parts, is_rest_apart)?;
    let tokens = PurgeTokens { bearer: auth.clone(), rest: rest.as_ref().map(Rest::tokens) };
    let mut front_ends = FrontEnds { parts: &parts, listeners: Vec::new(), files: Vec::new() };
    front_ends.files.extend(rest.as_ref().map(Rest::reloader));
    front_ends.add_http(auth, rest.as_ref(), (!is_admin_apart).then(|| tokens.clone()))?;
    if is_admin_apart {
        front_ends.add_admin(tokens);
    }
    if is_served(FrontEnd::Resp, &config.resp.listen) {
        front_ends.add_resp()?;
    }
    if let Some(rest) = rest.filter(|_| is_rest_apart) {
        front_ends.add_rest(rest)?;
    }
    let FrontEnds { listeners, files, .. } = front_ends;
    let mut bound = Vec::new();
    for (front_end, listen, config) in listeners {
        let socket = activated.remove(front_end.name());
        parts.metrics.set_connections_limit(front_end, config.max_connections);
        let metrics = Arc::clone(parts.metrics);
        bound.push(Listener::bind(front_end, listen, socket, config, metrics).await?);
    }
    Ok((bound, files))
}

/// Builds the REST front end, if it is served on a listener of its own or beside the keys.
fn rest(parts: &Parts<'_>, is_apart: bool) -> Result<Option<Rest>, FileError> {
    let Parts { config, proxy, .. } = *parts;
    let prepare = || {
        let (settings, max_key) = (config.rest.clone(), config.http.max_key.0);
        Rest::prepare(settings, &config.resp, max_key, proxy.clone())
    };
    (is_apart || config.rest.is_enabled()).then(prepare).transpose()
}

impl FrontEnds<'_> {
    /// Adds the HTTP front end. `purge_tokens`: it has the operator's routes, too.
    fn add_http(
        &mut self,
        auth: Option<BearerAuth>,
        rest: Option<&Rest>,
        purge_tokens: Option<PurgeTokens>,
    ) -> Result<(), FileError> {
        let Parts { config, fd_budget, status, proxy, metrics } = self.parts;
        let tls = config.http.tls()?;
        self.files.extend(auth.iter().map(BearerAuth::reloader));
        self.files.extend(tls.as_ref().map(Tls::reloader));
        let mut reads = http::Keys::new((*proxy).clone(), config.http.clone(), Router::new());
        if let Some(tokens) = purge_tokens {
            let access = CacheAccess {
                front_end: FrontEnd::Http,
                trusted: TrustedPeers::None,
                tokens,
                allow: config.http.allow_keys.clone(),
            };
            let routes = http::router((*proxy).clone(), (*status).clone(), access);
            reads = reads.with_operators(routes);
        }
        let reads = WithRest::new(rest.and_then(Rest::beside_others), reads);
        let counter = || metrics.reject_counter(FrontEnd::Http, RejectReason::Token);
        let auth = auth.map(|auth| (auth, counter()));
        let observer = self.observer(FrontEnd::Http, &config.rest.path);
        let listener = ListenerConfig {
            service: Arc::new(HttpService::new(reads, config.http.limits(), auth, observer)),
            tls,
            max_connections: fd_budget.http,
            auth_requirement: config.http.auth_requirement(),
        };
        self.listeners.push((FrontEnd::Http, &config.http.listen, listener));
        Ok(())
    }

    fn add_admin(&mut self, tokens: PurgeTokens) {
        let Parts { config, status, proxy, .. } = self.parts;
        let routes = http::standalone_router((*proxy).clone(), (*status).clone(), tokens);
        let observer = self.observer(FrontEnd::Admin, "");
        let listener = ListenerConfig {
            service: Arc::new(HttpService::new(routes, config.http.limits(), None, observer)),
            tls: None,
            max_connections: config.admin.max_connections,
            auth_requirement: config.admin.auth_requirement(),
        };
        self.listeners.push((FrontEnd::Admin, &config.admin.listen, listener));
    }

    fn add_resp(&mut self) -> Result<(), StartError> {
        let Parts { config, fd_budget, proxy, .. } = self.parts;
        let max_key = config.http.max_key.0;
        let resp = Resp::prepare(config.resp.clone(), max_key, (*proxy).clone())?;
        let tls = config.resp.tls()?;
        self.files.extend(tls.as_ref().map(Tls::reloader));
        self.files.extend(resp.reloader());
        let listener = ListenerConfig {
            service: Arc::new(resp),
            tls,
            max_connections: fd_budget.resp,
            auth_requirement: config.resp.auth_requirement(),
        };
        self.listeners.push((FrontEnd::Resp, &config.resp.listen, listener));
        Ok(())
    }

    fn add_rest(&mut self, rest: Rest) -> Result<(), FileError> {
        let Parts { config, fd_budget, .. } = self.parts;
        let tls = config.rest.tls()?;
        self.files.extend(tls.as_ref().map(Tls::reloader));
        let observer = self.observer(FrontEnd::Rest, "");
        let listener = ListenerConfig {
            service: Arc::new(HttpService::new(rest, config.rest.limits(), None, observer)),
            tls,
            max_connections: fd_budget.rest,
            auth_requirement: config.rest.auth_requirement(),
        };
        self.listeners.push((FrontEnd::Rest, &config.rest.listen, listener));
        Ok(())
    }

    fn observer(&self, front_end: FrontEnd, rest_path: &str) -> Observer {
        let Parts { config, metrics, .. } = self.parts;
        Observer::new(metrics, front_end).with_access_log(&config.telemetry, rest_path)
    }
}
