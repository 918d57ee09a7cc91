//! CacheService and EdgeService: translation and error mapping only.
