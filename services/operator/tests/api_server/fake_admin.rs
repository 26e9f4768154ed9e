//! An admin API that keeps accounts in memory, and does what a test tells it: answers, or is silent. What the real one does is tested in
//! `services/mailbell`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use mailbell_proto::{
    admin::v1::{
        Account, CheckAccountRequest, CheckAccountResponse, CreateAccountRequest,
        CreateAccountResponse, DeleteAccountRequest, DeleteAccountResponse, DrainMemberRequest,
        DrainMemberResponse, GetAccountRequest, GetShardsRequest, GetShardsResponse,
        ListAccountsRequest, ListAccountsResponse, ShardMember, ShardTotals, UpdateAccountRequest,
        accounts_server::{Accounts, AccountsServer},
        get_account_request::By,
        shards_server::{Shards, ShardsServer},
    },
    push::v1::{AccountState, Health},
};
use mailbell_test_servers::Certificate;
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::wrappers::TcpListenerStream,
    transport::{Identity, Server, ServerTlsConfig},
};

pub(crate) const TOKEN: &str = "mba_Kq7xVt2LhYd9RwZ4nPfJ6cBs8mGu3eAo5iTy1DkQ0XvN";
/// Small, so that there are several.
const PAGE: usize = 2;

/// It ends with the value.
pub(crate) struct FakeAdmin {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Connections are tasks of their own, and go with it.
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<String, Account>,
    passwords: BTreeMap<String, Vec<String>>,
    calls: Vec<&'static str>,
    silent: bool,
    /// Nobody who lists this tenant's accounts is answered.
    silent_of: Option<&'static str>,
    /// So many have begun to wait for that.
    waited: usize,
    /// A change leaves an account's state as it is.
    helpless: bool,
    /// It is of a release that knows no content policies.
    is_old: bool,
    /// Why no account is made.
    refuses: Option<&'static str>,
    token: String,
    made: u64,
    /// `None`: it cannot say.
    shards: Option<GetShardsResponse>,
}

impl State {
    /// What is kept of one that is asked for.
    fn policy(&self, asked: i32) -> i32 {
        if self.is_old { 0 } else { asked }
    }
}

impl FakeAdmin {
    pub(crate) fn start(certificate: Option<&Certificate>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            token: TOKEN.to_owned(),
            shards: Some(shards(7)),
            ..State::default()
        }));
        let mut server = Server::builder();
        if let Some(certificate) = certificate {
            let pair = Identity::from_pem(&certificate.certificate_pem, &certificate.key_pem);
            let tls = ServerTlsConfig::new().identity(pair);
            server = server.tls_config(tls).unwrap();
        }
        let router = server
            .add_service(AccountsServer::new(Service(Arc::clone(&state))))
            .add_service(ShardsServer::new(Service(Arc::clone(&state))));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let connections = TcpListenerStream::new(listener);
            router.serve_with_incoming(connections).await.unwrap();
        });
        Self {
            addr,
            state,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.addr)
    }

    /// Takes calls and never answers, or answers again.
    pub(crate) fn is_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// Never answers who lists this tenant's accounts.
    pub(crate) fn is_silent_of(&self, tenant: &'static str) {
        self.state().silent_of = Some(tenant);
    }

    /// How many have begun to wait for such an answer.
    pub(crate) fn waited(&self) -> usize {
        self.state().waited
    }

    /// So many mailboxes are registered; `None`: it cannot say.
    pub(crate) fn has_mailboxes(&self, mailboxes: Option<u64>) {
        self.state().shards = mailboxes.map(shards);
    }

    /// So many are watched, and as many others have been nobody's for so long.
    pub(crate) fn watches(&self, watched: u32, unowned: u64, unowned_for: Duration) {
        let mut answer = shards(u64::from(watched) + unowned);
        answer.members[0].watching = watched;
        let totals = answer.totals.as_mut().unwrap();
        totals.accounts_unowned = unowned;
        totals.unowned_ms = u64::try_from(unowned_for.as_millis()).unwrap();
        self.state().shards = Some(answer);
    }

    /// Makes no account, with this sentence; or makes them again.
    pub(crate) fn refuses(&self, sentence: Option<&'static str>) {
        self.state().refuses = sentence;
    }

    /// Whether an account is watched after a change, whatever was wrong.
    pub(crate) fn helps(&self, helps: bool) {
        self.state().helpless = !helps;
    }

    /// Whether it is of a release that passes over content policies.
    pub(crate) fn is_old(&self, is_old: bool) {
        self.state().is_old = is_old;
    }

    pub(crate) fn takes_token(&self, token: &str) {
        self.state().token = token.to_owned();
    }

    pub(crate) fn account(&self, external_id: &str) -> Option<Account> {
        self.state().accounts.get(external_id).cloned()
    }

    /// One that somebody has made, or changed.
    pub(crate) fn put(&self, account: Account) {
        let id = account.external_id.clone();
        self.state().accounts.insert(id, account);
    }

    /// A watcher has found that this is wrong with it.
    pub(crate) fn says(&self, external_id: &str, code: &str) {
        let mut state = self.state();
        let account = state.accounts.get_mut(external_id).unwrap();
        account.state = Some(AccountState {
            health: Health::ActionNeeded.into(),
            code: code.to_owned(),
            sentence: "Somebody has to see to it.".to_owned(),
            ..AccountState::default()
        });
        account.revision += 1;
    }

    pub(crate) fn remove(&self, external_id: &str) {
        self.state().accounts.remove(external_id);
    }

    /// How many accounts it has made.
    pub(crate) fn made(&self) -> usize {
        usize::try_from(self.state().made).unwrap()
    }

    /// How many it has.
    pub(crate) fn accounts(&self) -> usize {
        self.state().accounts.len()
    }

    /// Those that were set, from the first to the last.
    pub(crate) fn passwords(&self, external_id: &str) -> Vec<String> {
        let state = self.state();
        state
            .passwords
            .get(external_id)
            .cloned()
            .unwrap_or_default()
    }

    /// Names of the calls since the last time that this was asked.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    /// The same, without those that size an installation.
    pub(crate) fn calls_for_accounts(&self) -> Vec<&'static str> {
        let calls = self.calls().into_iter();
        calls.filter(|call| *call != "shards").collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeAdmin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Of one watcher, which watches seventeen of these mailboxes.
fn shards(mailboxes: u64) -> GetShardsResponse {
    GetShardsResponse {
        members: vec![ShardMember {
            release: "0.1.0".to_owned(),
            owned: 1024,
            watching: 17,
            ..ShardMember::default()
        }],
        totals: Some(ShardTotals {
            accounts: mailboxes,
            ..ShardTotals::default()
        }),
        steady: true,
        ..GetShardsResponse::default()
    }
}

struct Service(Arc<Mutex<State>>);

impl Service {
    async fn begin<T>(&self, call: &'static str, request: Request<T>) -> Result<T, Status> {
        let silent = {
            let mut state = self.0.lock().unwrap();
            state.calls.push(call);
            let given = request.metadata().get("authorization").unwrap();
            if given.to_str().unwrap() != format!("Bearer {}", state.token) {
                return Err(Status::unauthenticated("this is not my operator"));
            }
            state.silent
        };
        if silent {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Ok(request.into_inner())
    }
}

fn watching(account: &mut Account) {
    account.state = Some(AccountState {
        health: Health::Watching.into(),
        code: "ok".to_owned(),
        sentence: "New mail is told at once.".to_owned(),
        mode: "idle".to_owned(),
        ..AccountState::default()
    });
    account.revision += 1;
}

fn not_found() -> Status {
    Status::not_found("there is no such account")
}

#[tonic::async_trait]
impl Accounts for Service {
    async fn create_account(
        &self,
        request: Request<CreateAccountRequest>,
    ) -> Result<Response<CreateAccountResponse>, Status> {
        let asked = self.begin("create", request).await?;
        let mut state = self.0.lock().unwrap();
        if let Some(sentence) = state.refuses {
            return Err(Status::failed_precondition(sentence));
        }
        if let Some(there) = state.accounts.get(&asked.external_id) {
            if there.server != asked.server || there.folders != asked.folders {
                return Err(Status::already_exists("with other settings"));
            }
            let account = Some(there.clone());
            return Ok(Response::new(CreateAccountResponse {
                account,
                created: false,
            }));
        }
        state.made += 1;
        let mut account = Account {
            id: format!("{}.{:026}", asked.tenant, state.made),
            external_id: asked.external_id.clone(),
            server: asked.server,
            folders: asked.folders,
            paused: asked.paused,
            managed_by: asked.managed_by,
            content: state.policy(asked.content),
            ..Account::default()
        };
        watching(&mut account);
        let id = asked.external_id;
        state
            .passwords
            .entry(id.clone())
            .or_default()
            .push(asked.password);
        state.accounts.insert(id, account.clone());
        Ok(Response::new(CreateAccountResponse {
            account: Some(account),
            created: true,
        }))
    }

    async fn get_account(
        &self,
        request: Request<GetAccountRequest>,
    ) -> Result<Response<Account>, Status> {
        let Some(By::ExternalId(by)) = self.begin("get", request).await?.by else {
            panic!("by its external id");
        };
        let state = self.0.lock().unwrap();
        let found = state.accounts.get(&by.id).cloned();
        found.map(Response::new).ok_or_else(not_found)
    }

    async fn list_accounts(
        &self,
        request: Request<ListAccountsRequest>,
    ) -> Result<Response<ListAccountsResponse>, Status> {
        let asked = self.begin("list", request).await?;
        let is_silent = {
            let mut state = self.0.lock().unwrap();
            let is_silent = state.silent_of == Some(asked.tenant.as_str());
            state.waited += usize::from(is_silent);
            is_silent
        };
        if is_silent {
            std::future::pending::<()>().await;
        }
        let state = self.0.lock().unwrap();
        let first: usize = asked.page_token.parse().unwrap_or(0);
        let all = state.accounts.values().cloned();
        let accounts: Vec<_> = all.skip(first).take(PAGE).collect();
        let next = first + accounts.len();
        let more = next < state.accounts.len();
        Ok(Response::new(ListAccountsResponse {
            accounts,
            next_page_token: if more {
                next.to_string()
            } else {
                String::new()
            },
        }))
    }

    async fn update_account(
        &self,
        request: Request<UpdateAccountRequest>,
    ) -> Result<Response<Account>, Status> {
        let asked = self.begin("update", request).await?;
        let mut state = self.0.lock().unwrap();
        let (helpless, content) = (state.helpless, state.policy(asked.content));
        let mut all = state.accounts.values_mut();
        let account = all.find(|it| it.id == asked.id).ok_or_else(not_found)?;
        if asked.revision != 0 && asked.revision != account.revision {
            return Err(Status::aborted("somebody else changed it meanwhile"));
        }
        if account.server != asked.server && asked.password.is_none() {
            return Err(Status::invalid_argument("the password is needed anew"));
        }
        account.server = asked.server;
        account.folders = asked.folders;
        account.paused = asked.paused.unwrap();
        account.managed_by = asked.managed_by;
        account.content = content;
        match helpless {
            true => account.revision += 1,
            false => watching(account),
        }
        let account = account.clone();
        if let Some(password) = asked.password {
            let id = account.external_id.clone();
            state.passwords.entry(id).or_default().push(password);
        }
        Ok(Response::new(account))
    }

    async fn delete_account(
        &self,
        request: Request<DeleteAccountRequest>,
    ) -> Result<Response<DeleteAccountResponse>, Status> {
        let asked = self.begin("delete", request).await?;
        let mut state = self.0.lock().unwrap();
        state.accounts.retain(|_, account| account.id != asked.id);
        Ok(Response::new(DeleteAccountResponse {}))
    }

    async fn check_account(
        &self,
        _request: Request<CheckAccountRequest>,
    ) -> Result<Response<CheckAccountResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

#[tonic::async_trait]
impl Shards for Service {
    async fn get_shards(
        &self,
        request: Request<GetShardsRequest>,
    ) -> Result<Response<GetShardsResponse>, Status> {
        self.begin("shards", request).await?;
        let shards = self.0.lock().unwrap().shards.clone();
        let unknown = || Status::unavailable("the accounts are still being read; try again");
        shards.map(Response::new).ok_or_else(unknown)
    }

    async fn drain_member(
        &self,
        _request: Request<DrainMemberRequest>,
    ) -> Result<Response<DrainMemberResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}
