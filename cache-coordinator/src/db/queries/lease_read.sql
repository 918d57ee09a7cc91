-- Without a lock, because standbys read it often.
SELECT holder, address, term, expires_at > clock_timestamp() AS held FROM coordinator_lease
