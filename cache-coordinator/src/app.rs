//! Composition: the only owner of tasks and shutdown.
//!
//! Bind first, serve at once, become ready later: a missing database delays only readiness. The
//! shutdown proceeds in steps: servers and sessions first, then the writer with the changes that
//! they queued, then the lease.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use scheduler::api::WantId;
use service_kit::{
    route,
    shutdown::TaskSet,
    systemd,
    telemetry::MetricSender,
    tls::{self, CHECK_INTERVAL, Reloading, ServerFiles},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    access::{self, Access},
    config::ServeOptions,
    db::{
        Database, DatabaseConfig, LeaseKeeper, MigrateMode,
        lease::LeaseTimes,
        writer::{WriterConfig, WriterTask},
    },
    events::{ChangeLog, PrunePolicy, prune_until},
    grpc, http,
    listen::{self, AcceptedConnection},
    metrics::{DatabaseTimes, Metrics},
    service::{
        Cluster, forget, jobs, membership, probe::Probes, resolve_key::Resolver,
        source_check::SourceChecks, term, title::Titles,
    },
    sessions::{
        actor::Actor,
        registry::{End, Registry},
    },
};

/// A coordinator whose listeners are bound.
pub struct App {
    config: ServeOptions,
    grpc: TcpListener,
    http: TcpListener,
    grpc_tls: Option<Arc<Reloading<ServerConfig>>>,
    http_tls: Option<Arc<Reloading<ServerConfig>>>,
    access: Arc<Access>,
    shutdown: CancellationToken,
}

impl App {
    /// Binds both listeners and reads the certificates.
    pub async fn bind(config: ServeOptions, shutdown: CancellationToken) -> anyhow::Result<Self> {
        tls::install_provider();
        let grpc_tls = config.tls().map(tls::server).transpose()?;
        let http_files = config.tls().map(|files| ServerFiles {
            client_ca: None,
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()],
            ..files
        });
        let http_tls = http_files.map(tls::server).transpose()?;
        let access =
            Access::load(config.access_tokens_file.clone()).context("--access-tokens-file")?;
        let bind = |address: SocketAddr| async move {
            let bound = systemd::bind(address).await;
            bound.with_context(|| format!("can not listen on {address}"))
        };
        Ok(Self {
            grpc: bind(config.listen).await?,
            http: bind(config.http_listen).await?,
            config,
            grpc_tls,
            http_tls,
            access: Arc::new(access),
            shutdown,
        })
    }

    /// The address of the gRPC listener.
    pub fn grpc_address(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// The address of the HTTP listener.
    pub fn http_address(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Runs until the token is cancelled, or an essential task ends.
    pub async fn run(self) -> anyhow::Result<()> {
        let (grpc_address, http_address) = (self.grpc_address()?, self.http_address()?);
        let address = self.advertised(grpc_address)?;
        tracing::info!(grpc = %grpc_address, http = %http_address, "listening");
        let is_open = |address: SocketAddr| !address.ip().is_loopback();
        if self.access.tokens().is_none() && (is_open(grpc_address) || is_open(http_address)) {
            tracing::warn!("no --access-tokens-file: whoever can connect may do everything");
        }
        let parts = self.build(address)?;
        let mut tasks = TaskSet::new(self.shutdown.clone());
        self.spawn_watchers(&parts.cluster, grpc_address, &mut tasks)?;
        // Each step of the shutdown waits for the one before.
        let served = CancellationToken::new();
        let (migrate, drain_grace) = (self.config.migrate(), self.config.drain_grace);
        self.spawn_servers(&parts.cluster, http_address, served.clone(), &mut tasks);
        parts.spawn(migrate, served, &mut tasks);
        tasks.run(drain_grace).await?;
        tracing::info!("stopped");
        Ok(())
    }

    /// Where clients and edges reach this coordinator.
    fn advertised(&self, grpc_address: SocketAddr) -> anyhow::Result<String> {
        if let Some(url) = &self.config.advertise_url {
            return Ok(url.clone());
        }
        let reachable = route::reachable(grpc_address, &[]).with_context(|| {
            format!("--listen {grpc_address} names no machine: give --advertise-url")
        })?;
        let scheme = match self.grpc_tls {
            Some(_) => "https",
            None => "http",
        };
        Ok(format!("{scheme}://{reachable}"))
    }

    /// Composes what serves and decides. Nothing runs yet.
    fn build(&self, address: String) -> anyhow::Result<Parts> {
        let metrics = Arc::new(Metrics::default());
        let mut database_config = DatabaseConfig::new(self.config.database_url.expose());
        database_config.max_connections = self.config.database_connections as usize;
        let times = Arc::new(DatabaseTimes(Arc::clone(&metrics)));
        let database = Database::new(&database_config, Arc::clone(&times) as _)?;
        let holder = Uuid::new_v4();
        let lease_times = LeaseTimes::default();
        let keeper = LeaseKeeper::new(database.clone(), holder, address.clone(), lease_times);
        let leadership = keeper.leadership();
        let (writer, writer_task) = WriterTask::new(
            database.clone(),
            holder,
            keeper.step_down_handle(),
            WriterConfig::default(),
            times,
        );
        let registry = Arc::new(Registry::starting_at(service_kit::clock::now_ms()));
        let (actor, plan, done_wants) = Actor::new(
            Arc::new(database.clone()),
            Arc::clone(&registry),
            Arc::clone(&metrics),
        );
        let cluster = Arc::new(Cluster {
            events: ChangeLog::new(database.clone(), writer_task.commits(), leadership.clone()),
            database,
            writer,
            plan,
            registry,
            leadership,
            lease_trouble: keeper.trouble(),
            step_down: keeper.step_down_handle(),
            sources: ArcSwap::default(),
            publishing: tokio::sync::Mutex::default(),
            purging: tokio::sync::Mutex::default(),
            resolver: Resolver::default(),
            probes: Probes::default(),
            titles: Titles::default(),
            source_checks: SourceChecks::default(),
            watched: forget::Watched::default(),
            jobs: jobs::Jobs::default(),
            peer_keys: ArcSwap::default(),
            term_ready: watch::Sender::new(false),
            address,
            metrics,
            chunk_size: self.config.chunk_size,
            tasks: TaskTracker::new(),
            shutdown: self.shutdown.clone(),
        });
        Ok(Parts {
            cluster,
            keeper,
            writer: writer_task,
            actor,
            done_wants,
        })
    }

    /// Spawns what watches files, the process and its service manager, and sends metrics.
    fn spawn_watchers(
        &self,
        cluster: &Arc<Cluster>,
        grpc_address: SocketAddr,
        tasks: &mut TaskSet,
    ) -> anyhow::Result<()> {
        let stop = &self.shutdown;
        let (instance, telemetry) = (self.config.instance(), &self.config.telemetry);
        if let Some(sender) = MetricSender::new("cache-coordinator", &instance, telemetry)? {
            let (cluster, stop) = (Arc::clone(cluster), stop.clone());
            tasks.spawn_infallible("metrics", async move {
                sender.run(stop, || http::scrape::families(&cluster)).await;
            });
        }
        for reloading in self.grpc_tls.iter().chain(&self.http_tls) {
            let watching = Arc::clone(reloading).watch(CHECK_INTERVAL, stop.clone());
            tasks.spawn_infallible("tls-reload", watching);
        }
        if let Some(tokens) = self.access.tokens().cloned() {
            let watching = tokens.watch(access::CHECK_INTERVAL, stop.clone());
            tasks.spawn_infallible("tokens-reload", watching);
        }
        let status = format!("gRPC on {grpc_address}");
        tasks.spawn_infallible("systemd", systemd::notify_until(stop.clone(), status));
        Ok(())
    }

    /// Spawns the servers. `served` is cancelled once all calls have ended.
    fn spawn_servers(
        self,
        cluster: &Arc<Cluster>,
        http_address: SocketAddr,
        served: CancellationToken,
        tasks: &mut TaskSet,
    ) {
        let stop = self.shutdown;
        let (accepting, connections) = listen::accept(self.grpc, self.grpc_tls, stop.clone());
        tasks.spawn("grpc-accept", accepting);
        tasks.spawn("grpc", {
            let (cluster, access) = (Arc::clone(cluster), Arc::clone(&self.access));
            async move {
                let _guard = served.drop_guard();
                grpc::server::serve(Arc::clone(&cluster), access, connections).await?;
                cluster.tasks.close();
                cluster.tasks.wait().await;
                Ok(())
            }
        });
        let (accepting, connections) = listen::accept(self.http, self.http_tls, stop);
        tasks.spawn("http-accept", accepting);
        let connections = AcceptedConnection::new(connections, http_address);
        tasks.spawn(
            "http",
            http::serve(Arc::clone(cluster), self.access, connections),
        );
    }
}

/// The composed parts, before they run.
struct Parts {
    cluster: Arc<Cluster>,
    keeper: LeaseKeeper,
    writer: WriterTask,
    actor: Actor<Database>,
    done_wants: mpsc::UnboundedReceiver<WantId>,
}

impl Parts {
    /// Spawns what decides and writes. The writer ends after the plan, which ends once `served` is
    /// cancelled, and the lease after the writer.
    fn spawn(self, migrate: MigrateMode, served: CancellationToken, tasks: &mut TaskSet) {
        let Self {
            cluster,
            keeper,
            writer,
            actor,
            done_wants,
        } = self;
        let (database, stop) = (cluster.database.clone(), cluster.shutdown.clone());
        let written = CancellationToken::new();
        tasks.spawn_infallible("sessions-end", {
            let cluster = Arc::clone(&cluster);
            async move {
                cluster.shutdown.cancelled().await;
                cluster.registry.end_all(End::Shutdown);
            }
        });
        tasks.spawn_infallible("plan", actor.run(served.clone()));
        tasks.spawn_infallible("jobs", jobs::supervise(Arc::clone(&cluster), done_wants));
        tasks.spawn_infallible("term", term::run(Arc::clone(&cluster)));
        tasks.spawn_infallible("membership", membership::run(Arc::clone(&cluster)));
        tasks.spawn_infallible("forget", forget::run(Arc::clone(&cluster)));
        let leadership = cluster.leadership.clone();
        let pruning = prune_until(
            database.clone(),
            leadership,
            PrunePolicy::default(),
            stop.clone(),
        );
        tasks.spawn_infallible("prune", pruning);
        let guard = written.clone().drop_guard();
        tasks.spawn_infallible("writer", async move {
            let _guard = guard;
            writer.run(served).await;
        });
        tasks.spawn("lease", async move {
            // A schema that can never fit ends the process; a missing database does not.
            if database.wait_ready(migrate, &stop).await?.is_some() {
                keeper.run(written).await;
            }
            Ok(())
        });
    }
}
