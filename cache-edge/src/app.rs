//! Composition: makes the parts, connects them, and is the only owner of tasks and shutdown.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use anyhow::Context;
use chunkcache_proto::{Geometry, v1};
use prometheus_client::registry::Registry;
use service_kit::{
    metrics::{register_build_info, register_log_lines},
    open_files, route,
    shutdown::{TaskSet, token_on_signal},
    systemd,
    telemetry::{LogSender, MetricSender},
    tls::{self, ClientFiles, ServerFiles},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::core::consumption::START_CHUNKS;
use crate::fetch::{Downloads, direct::DirectFetch, run::Fetcher};
use crate::{
    admin::State,
    by_source::SentToViewers,
    control::{
        Link, Session, channel::Credentials, leases::LeaseKeeper, maintenance::Maintenance, notes,
        planner::Planner, session::Totals,
    },
    options::Options,
    readers::{DemandRegistry, IncomingChunks},
    resolve::{Bindings, EdgeObjects, Parts, peer_handler::Peers},
    server::{
        self, AccessLog, KeyFiles, Limits, Metrics, Server, Settings, SigningKeys, Steering,
        TlsConfig, sent_bytes::ByteSource,
    },
    upstream::{
        Catalogue, Client, counters::Counters, loops::LoopMarks, peer::PeerKeys,
        reloading::PeerClient,
    },
    worker_pool::{WorkerPool, Workers},
};
use chunk_store::{Store, StoreOptions};
use http_rules::steering::Candidate;

/// Chunks that finish within this time share their syncs.
const GROUP_SYNC_WINDOW: Duration = Duration::from_millis(20);
/// Added to the grace period of running bodies: time for the store's last syncs and the session's
/// last messages.
const END_GRACE: Duration = Duration::from_secs(10);
/// Time limit for resolving a coordinator's name at start.
const LOOKUP: Duration = Duration::from_millis(500);
/// A peer that sends nothing for this long is given up, and the origin is asked instead.
const PEER_STALL: Duration = Duration::from_secs(1);

/// Worker threads that may block on the disk: one per fetch, within reason, and one for the
/// additional CRITICAL fetch.
///
/// # Errors
///
/// The system has no more threads.
pub fn fetch_threads(max_downloads: usize) -> std::io::Result<WorkerPool> {
    WorkerPool::start("fetch", max_downloads.clamp(2, 8) + 1)
}

/// The parts of a running edge that tests and the listeners need.
pub struct Edge {
    pub objects: EdgeObjects,
    pub link: Arc<Link>,
    pub store: Store,
    pub catalogue: Arc<Catalogue>,
    pub downloads: Downloads,
    pub demand: Arc<DemandRegistry>,
    pub peer_keys: Arc<PeerKeys>,
    bindings: Arc<Bindings>,
    incoming: Arc<IncomingChunks>,
    chunk_size: Arc<AtomicU32>,
    counters: Arc<Counters>,
}

impl Edge {
    /// Connects the parts over an open store. Starts nothing yet.
    pub fn build(options: &Options, store: Store, fetch: Workers) -> anyhow::Result<Self> {
        let link = Link::new(options.name.clone());
        let catalogue = Arc::new(Catalogue::default());
        let peer_keys = Arc::new(PeerKeys::default());
        let chunk_size = Arc::new(AtomicU32::new(Geometry::DEFAULT_CHUNK_SIZE));
        notes::restore(&store, &catalogue, &peer_keys, &chunk_size);
        let bindings = Arc::new(Bindings::load(store.clone()));
        // Sources and bindings are stored separately: after a crash in between, an old key must not
        // be combined with a new base URL.
        let base_urls = catalogue.base_urls();
        bindings.forget_foreign(|name| base_urls.get(name).cloned());
        let incoming = Arc::new(IncomingChunks::default());
        let demand = Arc::new(DemandRegistry::new(
            options.lookahead,
            options.lookahead_time,
        ));
        let counters = Arc::new(Counters::default());
        let origin_tls =
            tls::client(ClientFiles::default()).context("trusting the system's authorities")?;
        let peer_tls =
            tls::client(options.coordinator_tls()).context("TLS toward coordinators and peers")?;
        let marks = LoopMarks::new(&store.store_id().to_string(), &options.name)
            .context("--name can not be sent to origins")?;
        let client = Client::toward_origins((*origin_tls.current()).clone(), marks);
        let fetcher = Arc::new(Fetcher {
            client: client.clone(),
            peer_client: PeerClient::new(peer_tls, PEER_STALL),
            catalogue: catalogue.clone(),
            incoming: incoming.clone(),
            peer_keys: peer_keys.clone(),
            retry_budget: options.chunk_wait_timeout,
            counters: counters.clone(),
        });
        let downloads = Downloads::new(
            options.max_downloads as usize,
            fetcher.clone(),
            link.clone(),
            demand.clone(),
            fetch.clone(),
        );
        let objects = EdgeObjects::new(Parts {
            store: store.clone(),
            catalogue: catalogue.clone(),
            bindings: bindings.clone(),
            incoming: incoming.clone(),
            demand: demand.clone(),
            direct: Arc::new(DirectFetch {
                fetcher,
                workers: fetch,
            }),
            downloads: downloads.clone(),
            client,
            directory: link.clone(),
            announce: link.clone(),
            chunk_size: chunk_size.clone(),
            chunk_wait_timeout: options.chunk_wait_timeout,
            start_chunks: options.lookahead.unwrap_or(START_CHUNKS),
        });
        Ok(Self {
            objects,
            link,
            store,
            catalogue,
            downloads,
            demand,
            peer_keys,
            bindings,
            incoming,
            chunk_size,
            counters,
        })
    }

    /// The incoming chunks.
    #[must_use]
    pub fn incoming(&self) -> &IncomingChunks {
        &self.incoming
    }

    /// Spawns the tasks beside the listeners.
    pub fn spawn(
        &self,
        options: &Options,
        url: String,
        metrics: Arc<Metrics>,
        tasks: &mut TaskSet,
        stop: &CancellationToken,
    ) {
        let planner = Planner {
            link: self.link.clone(),
            demand: self.demand.clone(),
            downloads: self.downloads.clone(),
            incoming: self.incoming.clone(),
            store: self.store.clone(),
            lookahead_chunks: options.lookahead_chunks(),
        };
        let maintenance = Maintenance {
            link: self.link.clone(),
            store: self.store.clone(),
            bindings: self.bindings.clone(),
            downloads: self.downloads.clone(),
            incoming: self.incoming.clone(),
            demand: self.demand.clone(),
        };
        let leases = LeaseKeeper {
            catalogue: self.catalogue.clone(),
            downloads: self.downloads.clone(),
        };
        let session = Session {
            link: self.link.clone(),
            hello: v1::Hello {
                name: options.name.clone(),
                store_id: self.store.store_id().to_string(),
                url,
                max_downloads: options.max_downloads,
                version: env!("CARGO_PKG_VERSION").into(),
                background_fill: options.background_fill,
                bytes_allowed: self.store.bytes_allowed(),
                kept: Vec::new(),
                last_purge: 0,
                now_ms: 0,
            },
            credentials: Credentials {
                ca: options.coordinator_ca.clone(),
                identity: options.coordinator_tls().identity,
                token: options.coordinator_token_file.clone(),
            },
            store: self.store.clone(),
            catalogue: self.catalogue.clone(),
            bindings: self.bindings.clone(),
            peer_keys: self.peer_keys.clone(),
            chunk_size: self.chunk_size.clone(),
            demand: self.demand.clone(),
            downloads: self.downloads.clone(),
            objects: self.objects.clone(),
            totals: Arc::new(EdgeTotals {
                since: Instant::now(),
                metrics,
                counters: self.counters.clone(),
            }),
        };
        // Certificates for peers; those for coordinators are read for each connection.
        let peer_tls = self.downloads.fetcher().peer_client.tls().clone();
        let renewed = stop.clone();
        tasks.spawn_infallible("peer-tls-reload", async move {
            peer_tls.watch(tls::CHECK_INTERVAL, renewed).await;
        });
        let coordinators = options.coordinators.clone();
        let stopped = [stop.clone(), stop.clone(), stop.clone(), stop.clone()];
        let [planner_stop, upkeep_stop, session_stop, leases_stop] = stopped;
        tasks.spawn_infallible("planner", async move {
            planner.run(planner_stop).await;
        });
        tasks.spawn_infallible("maintenance", async move {
            maintenance.run(upkeep_stop).await;
        });
        tasks.spawn_infallible("leases", async move {
            leases.run(leases_stop).await;
        });
        tasks.spawn_infallible("session", async move {
            session.run(coordinators, session_stop).await;
        });
    }
}

struct EdgeTotals {
    since: Instant,
    metrics: Arc<Metrics>,
    counters: Arc<Counters>,
}

impl Totals for EdgeTotals {
    fn totals(&self) -> [u64; 5] {
        let sent = |source| self.metrics.sent_bytes(source);
        let hit = sent(ByteSource::Hit);
        [
            hit + sent(ByteSource::InFlight) + sent(ByteSource::Origin) + sent(ByteSource::Bypass),
            hit,
            self.counters.origin_bytes.get(),
            self.counters.peer_bytes.get(),
            self.metrics.stalls(),
        ]
    }

    fn of_source(&self, source: &str) -> SentToViewers {
        self.metrics.sent.to_viewers(source)
    }

    fn requests_active(&self) -> u32 {
        u32::try_from(self.metrics.requests_active()).unwrap_or_default()
    }

    fn uptime(&self) -> Duration {
        self.since.elapsed()
    }
}

/// `cache-edge serve`: runs until a signal, then drains.
pub async fn serve(options: Options, fetch: Workers) -> anyhow::Result<()> {
    let signal = token_on_signal()?;
    let open_files = open_files::raise_limit();
    let store = open_store(&options).await?;
    let listener = bind(options.listen, "--listen").await?;
    let admin_listener = bind(options.admin_listen, "--admin-listen").await?;
    let player_tls = listener_tls(options.tls(), &["h2", "http/1.1", "http/1.0"])?;
    let admin_tls = listener_tls(options.admin_tls(), &["http/1.1", "http/1.0"])?;
    let address = listener.local_addr()?;
    let scheme = if player_tls.is_some() {
        "https"
    } else {
        "http"
    };
    let url = match &options.advertise_url {
        Some(url) => url.clone(),
        None => format!("{scheme}://{}", reachable_address(address, &options).await?),
    };

    let mut registry = Registry::with_prefix("cache_edge");
    register_build_info(&mut registry, env!("CARGO_PKG_VERSION"));
    register_log_lines(&mut registry);
    let metrics = Metrics::new(&mut registry);
    let edge = Edge::build(&options, store.clone(), fetch)?;

    // The session and the other tasks outlive the listener, because bodies that drain still need
    // their chunks.
    let stop = CancellationToken::new();
    let mut tasks = TaskSet::new(signal.clone());
    let this = Candidate {
        name: options.name.clone(),
        url: url.clone(),
    };
    edge.spawn(&options, url, metrics.clone(), &mut tasks, &stop);
    let mut settings = Settings::new(options.name.clone());
    settings.steering = Steering {
        directory: edge.link.clone(),
        this,
    };
    let access_log = access_log(&options, &mut registry)?;
    settings.access_log.clone_from(&access_log);
    settings.cors = options.players.cors();
    settings.cmsd = options.players.cmsd;
    settings.limits = options.players.limits();
    bound_connections(&mut settings.limits, open_files);
    settings.timeouts = options.players.timeouts();
    settings.proxies = options.players.proxies();
    settings.signed_urls = signing_keys(options.players.key_files())?;
    settings.drain_grace = options.drain_grace;
    settings.tls = player_tls;
    let state = Arc::new(State::new(&edge, registry, signal.clone()));
    let peers = Peers {
        objects: edge.objects.clone(),
        keys: edge.peer_keys.clone(),
        metrics: metrics.clone(),
    };
    let server = Server::new(
        Arc::new(edge.objects.clone()),
        settings,
        metrics,
        Some(Arc::new(peers)),
    );
    let (draining, link) = (signal.clone(), edge.link.clone());
    let stop_rest = stop.clone();
    tasks.spawn("players", async move {
        let _stop_rest = stop_rest.drop_guard();
        let tell = draining.clone();
        tokio::try_join!(server.serve(listener, draining), async move {
            tell.cancelled().await;
            link.set_draining(true);
            link.send(v1::session_request::Message::Drain(v1::DrainRequest {}));
            Ok(())
        })
        .context("starting the threads that serve players")?;
        Ok(())
    });
    if let Some(sender) = MetricSender::new("cache-edge", &options.name, &options.telemetry)? {
        let (metrics, stop) = (state.clone(), stop.clone());
        tasks.spawn_infallible("metrics", async move {
            sender
                .run(stop, || std::future::ready(metrics.families()))
                .await;
        });
    }
    tasks.spawn_infallible("admin", async move {
        server::admin::serve(admin_listener, admin_tls, state, stop).await;
    });
    let (stopping, status) = (signal.clone(), format!("serving players on {address}"));
    tasks.spawn_infallible("systemd", async move {
        systemd::notify_until(stopping, status).await;
    });
    tracing::info!(players = %address, data_dir = %options.data_dir.display(), "serving");

    let result = tasks.run(options.drain_grace + END_GRACE).await;
    edge.downloads.close();
    let close = move || {
        store.close();
        if let Some(log) = access_log {
            log.close();
        }
    };
    tokio::task::spawn_blocking(close).await?;
    result.map_err(Into::into)
}

pub(crate) async fn open_store(options: &Options) -> anyhow::Result<Store> {
    let store_options = StoreOptions {
        data_dir: options.data_dir.clone(),
        max_bytes: options.max_bytes,
        min_free: options.min_free,
        group_sync_window: GROUP_SYNC_WINDOW,
    };
    Ok(tokio::task::spawn_blocking(move || Store::open(store_options)).await??)
}

/// Half of the open files may be clients' connections: the others are files, and connections to
/// origins.
fn bound_connections(limits: &mut Limits, open_files: u64) {
    let bound = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
    if bound < limits.connections {
        tracing::warn!(
            open_files,
            connections = bound,
            "fewer connections than --max-connections: raise the limit of open files \
             (LimitNOFILE=, ulimit -n) to at least twice as many"
        );
        limits.connections = bound;
    }
}

/// Opens the access log; reopens its file on each SIGHUP, for log rotation.
fn access_log(
    options: &Options,
    registry: &mut Registry,
) -> anyhow::Result<Option<Arc<AccessLog>>> {
    let Some(log_options) = &options.players.access_log else {
        return Ok(None);
    };
    let mut sender = None;
    if options.players.logs_to_collector() {
        let (instance, telemetry) = (&options.name, &options.telemetry);
        sender = LogSender::new("cache-edge", instance, "access_log", telemetry)?;
        if sender.is_none() {
            // OpenTelemetry is turned off.
            return Ok(None);
        }
    }
    let log = AccessLog::start(log_options, sender).context("--access-log")?;
    registry.register(
        "access_log_dropped_lines",
        "Lines of the access log that its target refused, or was too slow for",
        log.dropped(),
    );
    let mut hangups = signal(SignalKind::hangup())?;
    let reopened = Arc::clone(&log);
    // Ends with the process.
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reopened.reopen();
        }
    });
    Ok(Some(log))
}

/// The address that coordinators see. Does not wait for a name that does not resolve yet.
async fn reachable_address(bound: SocketAddr, options: &Options) -> anyhow::Result<SocketAddr> {
    let mut peers = Vec::new();
    if bound.ip().is_unspecified() {
        for url in options
            .coordinators
            .iter()
            .flat_map(|url| url.parse::<url::Url>())
        {
            let host = url.host_str().unwrap_or_default();
            let host = host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned();
            let port = url.port_or_known_default().unwrap_or_default();
            let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, port))).await;
            peers.extend(found.into_iter().flatten().flatten());
        }
    }
    route::reachable(bound, &peers)
        .with_context(|| format!("--listen {bound} names no machine: give --advertise-url"))
}

async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    systemd::bind(address)
        .await
        .with_context(|| format!("{option} {address} can not be listened on"))
}

/// `alpn`: in order of preference. Some clients offer `http/1.0` alone, and a handshake without a
/// common protocol fails.
fn listener_tls(
    files: Option<(PathBuf, PathBuf)>,
    alpn: &[&str],
) -> anyhow::Result<Option<TlsConfig>> {
    let Some((cert, key)) = files else {
        return Ok(None);
    };
    let files = ServerFiles {
        cert,
        key,
        client_ca: None,
        alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
    };
    let reloading = tls::server(files)?;
    let watched = reloading.clone();
    // Ends with the process. If a certificate cannot be read, the old one stays in place.
    tokio::spawn(async move {
        watched
            .watch(tls::CHECK_INTERVAL, CancellationToken::new())
            .await
    });
    Ok(Some(Arc::new(move || reloading.current())))
}

fn signing_keys(files: Option<KeyFiles>) -> anyhow::Result<Option<SigningKeys>> {
    let Some(files) = files else { return Ok(None) };
    let keys = SigningKeys::load(files).context("keys of signed URLs")?;
    // Ends with the process, like the task for certificates.
    tokio::spawn(keys.clone().watch(tls::CHECK_INTERVAL));
    Ok(Some(keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_bound_connections() {
        let mut limits = Limits::default();
        bound_connections(&mut limits, u64::MAX);
        assert_eq!(limits.connections, Limits::default().connections);
        bound_connections(&mut limits, 1024);
        assert_eq!(limits.connections, 512);
    }
}
