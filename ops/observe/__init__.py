"""A real Prometheus beside a real Easel: to test the dashboards' queries, for drills, and for pictures."""
