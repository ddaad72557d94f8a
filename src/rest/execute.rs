//! The commands of a request: from memory as far as memory answers, then on a client in this
//! process.
//!
//! Model: memory answers the first commands of a request one by one. From the first that it does
//! not answer on, all go to a client, which sends what is left to Redis as one pipeline. So a
//! request of hits has no client, and the order of the commands is kept.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::time::Instant;

use super::answer::{Format, Whole, Writer};
use super::handler::{Form, Job, Rejection, Rest, bad_request};
use super::request::{Commands, Words};
use super::response::{elements, error_text};
use super::rights::{Refusal, key_refusal, refusal};
use super::run::{Run, RunError};
use super::sync_token::Progress;
use crate::access::TokenRights;
use crate::commands::CommandInfo;
use crate::metrics::{FrontEnd, RejectReason};
use crate::resp::{KeySpecs, MemoryReader, PREFETCHED};

/// The replies to the first commands of a request.
pub(super) struct Begun {
    writer: Writer,
    /// The number of commands that are answered.
    answered: usize,
    /// The most bytes of the other replies.
    room: usize,
}

/// Redis has not reported yet which arguments of commands are keys.
pub(super) struct KeysUnknown;

impl Begun {
    /// Whether each command has its reply.
    pub(super) fn is_whole(&self, commands: &Commands) -> bool {
        self.answered == commands.len()
    }

    /// Returns the response, if it is whole.
    pub(super) fn into_whole(self) -> Whole {
        self.writer.finish()
    }
}

impl Rest {
    /// Runs the commands of a request.
    pub(super) async fn execute(
        &self,
        job: &Job,
        commands: &Commands,
        progress: &Arc<Progress>,
    ) -> Result<Response<Bytes>, Rejection> {
        let specs = self.specs_for(&job.rights).await?;
        let begun = self.begin(job, specs, commands, Instant::now())?;
        self.finish(job, commands, begun, progress).await
    }

    /// Answers the first commands of a request, as far as memory does. The request came at `now`.
    pub(super) fn begin(
        &self,
        job: &Job,
        specs: Option<&KeySpecs>,
        commands: &Commands,
        now: Instant,
    ) -> Result<Begun, Rejection> {
        let is_single = matches!(job.form, Form::Single | Form::Path);
        let writer = if is_single { Writer::single(job.format) } else { Writer::list(job.format) };
        let mut begun = Begun { writer, answered: 0, room: self.0.settings.max_response.0 };
        // The commands of a transaction run together.
        if job.form == Form::Transaction {
            return Ok(begun);
        }
        let mut reader = self.0.clients.reader(job.seen.time(), now);
        let answered = self.answer_from_memory(job, specs, commands, &mut reader, &mut begun);
        reader.finish();
        answered.map(|()| begun)
    }

    fn answer_from_memory(
        &self,
        job: &Job,
        specs: Option<&KeySpecs>,
        commands: &Commands,
        reader: &mut MemoryReader<'_>,
        begun: &mut Begun,
    ) -> Result<(), Rejection> {
        for (index, command) in commands.iter().enumerate() {
            if index % PREFETCHED == 0 {
                reader.prefetch(commands.iter().skip(index).map_while(key_of_get));
            }
            let info = self.0.clients.find(command.get(0));
            match self.refusal(&job.rights, specs, info, command) {
                Some(refusal) if job.form == Form::Pipeline => {
                    self.count(&refusal);
                    begun.writer.add_error(&refusal.text());
                }
                Some(refusal) => return Err(self.rejection(&refusal)),
                None => {
                    let Some(reply) = reader.reply(info, command.arguments()) else {
                        return Ok(());
                    };
                    begun.room = begun.room.checked_sub(reply.len()).ok_or(RunError::TooLarge)?;
                    begun.writer.add(reply).map_err(RunError::from)?;
                }
            }
            begun.answered += 1;
            self.check_length(job, &begun.writer)?;
        }
        Ok(())
    }

    /// Answers the other commands of a request.
    pub(super) async fn finish(
        &self,
        job: &Job,
        commands: &Commands,
        begun: Begun,
        progress: &Arc<Progress>,
    ) -> Result<Response<Bytes>, Rejection> {
        match job.form {
            _ if begun.is_whole(commands) => Ok(begun.into_whole().into_response()),
            Form::Single | Form::Path => self.single(job, commands, begun, progress).await,
            Form::Pipeline => self.pipeline(job, commands, begun, progress).await,
            Form::Transaction => self.transaction(job, commands, progress).await,
        }
    }

    /// Runs one command.
    async fn single(
        &self,
        job: &Job,
        commands: &Commands,
        begun: Begun,
        progress: &Arc<Progress>,
    ) -> Result<Response<Bytes>, Rejection> {
        let Begun { mut writer, room, .. } = begun;
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job, room, progress);
        self.add_all(&mut run, &job.rights, specs, commands)?;
        run.send();
        writer.add(run.reply().await?).map_err(RunError::from)?;
        run.finish();
        Ok(writer.finish().into_response())
    }

    /// Runs commands one after the other. Each has its reply or its error in its place.
    async fn pipeline(
        &self,
        job: &Job,
        commands: &Commands,
        begun: Begun,
        progress: &Arc<Progress>,
    ) -> Result<Response<Bytes>, Rejection> {
        let Begun { mut writer, answered, room } = begun;
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job, room, progress);
        let mut refusals = Vec::with_capacity(commands.len() - answered);
        for command in commands.iter().skip(answered) {
            let info = self.0.clients.find(command.get(0));
            let refusal = self.refusal(&job.rights, specs, info, command);
            match &refusal {
                Some(refusal) => self.count(refusal),
                None => self.add(&mut run, info, command),
            }
            refusals.push(refusal);
        }
        run.send();
        let mut failed = None;
        for refusal in &refusals {
            match (refusal, failed) {
                (Some(refusal), _) => writer.add_error(&refusal.text()),
                (None, Some(error)) => writer.add_error(error),
                (None, None) => match run.reply().await {
                    Ok(reply) => writer.add(reply).map_err(RunError::from)?,
                    // A client would take a part of the replies for all of them.
                    Err(RunError::Lost) => {
                        failed = Some(LOST);
                        writer.add_error(LOST);
                    }
                    Err(error) => return Err(error.into()),
                },
            }
            self.check_length(job, &writer)?;
        }
        run.finish();
        Ok(writer.finish().into_response())
    }

    /// Checks the length of a response so far. One reply may be larger as JSON than as RESP.
    fn check_length(&self, job: &Job, writer: &Writer) -> Result<(), RunError> {
        let is_too_large =
            job.form == Form::Pipeline && writer.len() > self.0.settings.max_response.0;
        if is_too_large { Err(RunError::TooLarge) } else { Ok(()) }
    }

    /// Runs commands as one transaction, or none of them.
    async fn transaction(
        &self,
        job: &Job,
        commands: &Commands,
        progress: &Arc<Progress>,
    ) -> Result<Response<Bytes>, Rejection> {
        if job.format == Format::Resp2 {
            return Err(bad_request("ERR resp2 is not supported for multi-exec"));
        }
        let specs = self.specs_for(&job.rights).await?;
        let mut run = self.run(job, self.0.settings.max_response.0, progress);
        self.add_line(&mut run, b"MULTI", b"*1\r\n$5\r\nMULTI\r\n");
        self.add_all(&mut run, &job.rights, specs, commands)?;
        self.add_line(&mut run, b"EXEC", b"*1\r\n$4\r\nEXEC\r\n");
        run.send();
        let mut refused = None;
        // The replies to MULTI and to each command that is queued.
        for _ in 0..=commands.len() {
            let reply = run.reply().await?;
            refused = refused.or_else(|| error_text(reply).map(<[u8]>::to_vec));
        }
        let reply = run.reply().await?;
        let replies = elements(reply).filter(|replies| replies.len() == commands.len());
        let Some(replies) = replies else {
            let own = || error_text(reply).map(<[u8]>::to_vec);
            let text = refused.or_else(own).unwrap_or_else(|| b"ERR transaction discarded".into());
            run.finish();
            return Err(bad_request(&String::from_utf8_lossy(&text)));
        };
        let mut writer = Writer::list(job.format);
        for reply in replies {
            writer.add(reply).map_err(RunError::from)?;
        }
        run.finish();
        Ok(writer.finish().into_response())
    }

    /// A run of commands with replies of at most `room` bytes.
    fn run(&self, job: &Job, room: usize, progress: &Arc<Progress>) -> Run {
        Run::new(self.0.clients.client(job.seen.time()), room, Arc::clone(progress))
    }

    /// Adds commands that run all or not at all: the first refused one rejects the request.
    fn add_all(
        &self,
        run: &mut Run,
        rights: &TokenRights,
        specs: Option<&KeySpecs>,
        commands: &Commands,
    ) -> Result<(), Rejection> {
        for command in commands.iter() {
            let info = self.0.clients.find(command.get(0));
            if let Some(refusal) = self.refusal(rights, specs, info, command) {
                return Err(self.rejection(&refusal));
            }
            self.add(run, info, command);
        }
        Ok(())
    }

    fn add(&self, run: &mut Run, info: CommandInfo, command: Words<'_>) {
        let name = command.get(0);
        match self.0.scripts.replacement(command) {
            None => run.add(name, info, |out| command.write(out)),
            Some((index, word)) => {
                run.add(name, info, |out| command.write_with(index, &word, out));
            }
        }
    }

    fn add_line(&self, run: &mut Run, name: &[u8], line: &[u8]) {
        run.add(name, self.0.clients.find(name), |out| out.extend_from_slice(line));
    }

    /// Returns the reason why a command does not run. `specs` are those of these rights.
    fn refusal(
        &self,
        rights: &TokenRights,
        specs: Option<&KeySpecs>,
        info: CommandInfo,
        command: Words<'_>,
    ) -> Option<Refusal> {
        let found = refusal(&self.0.denied, rights, info, command);
        let Some(specs) = specs.filter(|_| found.is_none()) else { return found };
        let arguments = command.arguments();
        let keys = || {
            let indexes = if info.is_known { specs.keys(arguments) } else { Vec::new() };
            indexes.into_iter().map(|index| arguments.get(index)).collect()
        };
        key_refusal(rights, info.class, arguments, keys)
    }

    /// Returns which arguments of commands are keys, if that is known already; `None` for a token
    /// that may use all keys.
    pub(super) fn known_specs(
        &self,
        rights: &TokenRights,
    ) -> Result<Option<&KeySpecs>, KeysUnknown> {
        if rights.keys.allows_all() {
            return Ok(None);
        }
        self.0.key_specs.get().map(Some).ok_or(KeysUnknown)
    }

    /// Returns which arguments of commands are keys; `None` for a token that may use all keys.
    async fn specs_for(&self, rights: &TokenRights) -> Result<Option<&KeySpecs>, Rejection> {
        if let Ok(known) = self.known_specs(rights) {
            return Ok(known);
        }
        // Boxed, it does not enlarge the future of each request.
        Box::pin(self.key_specs()).await.map(Some)
    }

    /// Returns which arguments of commands are keys, as Redis reports it.
    async fn key_specs(&self) -> Result<&KeySpecs, Rejection> {
        let unavailable = |text: &str| {
            let text = format!("ERR redis-proxy: cannot find the keys of commands: {text}");
            Rejection(StatusCode::SERVICE_UNAVAILABLE, text)
        };
        let read = self.0.key_specs.get_or_try_init(|| async {
            let own = Arc::default();
            let mut run = Run::new(self.0.clients.client(None), MAX_COMMAND_TABLE, own);
            self.add_line(&mut run, b"COMMAND", b"*1\r\n$7\r\nCOMMAND\r\n");
            run.send();
            let reply = run.reply().await.map_err(|error| unavailable(&error.to_string()))?;
            let parsed = redis::parse_redis_value(reply);
            run.finish();
            let parsed = parsed.map_err(|_| unavailable("no valid reply to COMMAND"))?;
            let specs = KeySpecs::read(&parsed);
            if specs.is_empty() { Err(unavailable("no reply to COMMAND")) } else { Ok(specs) }
        });
        read.await
    }

    fn count(&self, refusal: &Refusal) {
        let reason =
            if *refusal == Refusal::Key { RejectReason::Key } else { RejectReason::Command };
        self.0.proxy.record_rejected(FrontEnd::Rest, reason);
    }

    pub(super) fn rejection(&self, refusal: &Refusal) -> Rejection {
        self.count(refusal);
        let status =
            if refusal.is_of_token() { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
        Rejection(status, refusal.text())
    }
}

/// Returns the key of a `GET`.
fn key_of_get(command: Words<'_>) -> Option<&[u8]> {
    (command.len() == 2 && command.get(0) == b"GET").then(|| command.get(1))
}

/// The error in the place of each reply that was lost.
const LOST: &str = "ERR redis-proxy: the connection to Redis was lost, so the command may have run";

/// The largest reply to `COMMAND`. That of Redis 8 with all its modules has less than 1 MiB.
const MAX_COMMAND_TABLE: usize = 16 << 20;
