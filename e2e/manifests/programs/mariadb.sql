create database app;
create user app@'%' identified by 'app';
grant all on app.* to app@'%';
